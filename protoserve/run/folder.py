"""The run folder that training writes and export reads: its file names, and readers that need no torch.

- `model.pt`: the final network;
- `samples.npy`: pictures at model size for the parity gate;
- `prototypes/NNNN.webp`: the source patch of each prototype in context;
- `similarities.npz`: the similarities of fit and selection images (`protoserve.run.similarities`);
- `calibration/`: the selection images' scores behind the promise (`protoserve.promise.calibration`);
- `analysis.json` and `patches/NNNN.webp`: the training patches nearest to each prototype;
- `metrics.json`, `confusion.json`, `provenance.json`;
- for people: `config.yaml`, `history.csv` and plots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from protoserve.errors import InputError
from protoserve.run.provenance import Provenance
from protoserve.run.record import Record
from protoserve.run.records import Analysis, Confusion, Metrics

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Run:
    """A run folder; its files are read on demand."""

    directory: Path

    @property
    def model(self) -> Path:
        """The final network's checkpoint."""
        return self.directory / "model.pt"

    def picture(self, prototype: int) -> Path:
        """Return the file of the picture of a prototype's source patch."""
        return self.directory / "prototypes" / f"{prototype:04d}.webp"

    @property
    def calibration(self) -> Path:
        """The folder of the calibration pictures' scores; runs of older versions have none."""
        return self.directory / "calibration"

    def patches(self, prototype: int) -> Path:
        """Return the file with the pictures of a prototype's nearest training patches, side by side."""
        return self.directory / "patches" / f"{prototype:04d}.webp"

    def metrics(self) -> Metrics:
        """Read `metrics.json`; raises InputError if it is missing or damaged."""
        return self._read("metrics.json", Metrics)

    def provenance(self) -> Provenance:
        """Read `provenance.json`; raises InputError if it is missing or damaged."""
        return self._read("provenance.json", Provenance)

    def analysis(self) -> Analysis | None:
        """Read `analysis.json`, None if the run has no global analysis; raises InputError if it is damaged."""
        return self._read("analysis.json", Analysis) if (self.directory / "analysis.json").is_file() else None

    def confusion(self) -> Confusion | None:
        """Read `confusion.json`, None if the run has none; raises InputError if it is damaged."""
        return self._read("confusion.json", Confusion) if (self.directory / "confusion.json").is_file() else None

    def _read(self, name: str, record: type[R]) -> R:
        file = self.directory / name
        try:
            return record.model_validate_json(file.read_bytes())
        except OSError as error:
            raise InputError(
                f"{file}: can't read it ({error.strerror}); finish the run with 'protoserve train … --resume'"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            reason = f"{key}: {first['msg']}" if key else first["msg"]
            raise InputError(
                f"{file}: can't read it ({reason}); train again, or use the version that wrote it"
            ) from error

    def samples(self) -> NDArray[np.uint8]:
        """Read `samples.npy`: real pictures at model size for the parity gate, uint8 [pictures, height, width, 3]."""
        file = self.directory / "samples.npy"
        try:
            samples = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{file}: can't read it ({error}); finish the run with 'protoserve train … --resume'"
            ) from error
        return np.asarray(samples, dtype=np.uint8)


def open_run(directory: Path) -> Run:
    """Open a finished run; raises InputError if the folder is missing or the run is not finished."""
    run = Run(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such run; make one with 'protoserve train CONFIG --run {directory}'")
    if not run.model.is_file():
        raise InputError(
            f"{directory}: the run is not finished (no model.pt); resume it with 'protoserve train … --resume'"
        )
    return run

"""A run's history for TensorBoard, beside the CSV file and the curves that every run has."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protoserve.errors import MissingExtraError


class Board:
    """Event files in `directory`; a run that is taken up again starts them anew with the rows it has."""

    def __init__(self, directory: Path, history: list[dict[str, Any]]) -> None:
        try:
            with warnings.catch_warnings():
                # tensorboard's own use of what its dependencies deprecate.
                warnings.simplefilter("ignore", DeprecationWarning)
                from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("--tensorboard", "tensorboard") from error
        for stale in directory.glob("events.out.tfevents.*"):
            stale.unlink()
        self._writer = SummaryWriter(str(directory))
        for row in history:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """One row of the history: its figures at its step, under the name of its stage; accuracies on the selection
        images in one curve for all stages."""
        for name, value in row.items():
            if name not in ("step", "stage", "epoch") and isinstance(value, int | float):
                place = name if name.startswith("selection") else f"{row['stage']}/{name}"
                self._writer.add_scalar(place, value, row["step"] + 1)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

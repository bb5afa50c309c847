"""The parity gate of a curated bundle whose files were changed without the network.

A changed file is compared with the file that it was made from. The host switches off, in the answers of both, what is
off in either (`protoserve.inference.switching`): they must then be the same. In the changed file's own answers, what is
off must have its usual similarity, and the sums must hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.parity import Arrays, Runtime
from export.records import BatchReport, TargetReport, Tolerance
from protoserve.bundle.folder import Bundle
from protoserve.errors import ParityError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.inference.engine import Outputs
from protoserve.inference.switching import Switches

# Pictures of prototypes that the gate looks at: real pictures, and each bundle has them.
PICTURES: Final = 24
_COMPARED: Final = ("log_probability", "logit", "similarity")


def gate_pictures(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """Read pictures of the bundle's prototypes, spread over all, at their own sizes: uint8 [height, width, 3] each."""
    count = len(bundle.prototypes)
    chosen = np.unique(np.linspace(0, count - 1, min(PICTURES, count)).astype(np.int64))
    pictures = []
    for prototype in chosen.tolist():
        with Image.open(bundle.picture(prototype)) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return pictures


def check_switched(
    bundle: Bundle,
    old: Runtime,
    new: Runtime,
    off: Collection[int],
    report: TargetReport,
) -> TargetReport:
    """Compare the runtime of a `new` file, in which exactly `off` are off, with that of the bundle's `old` one.

    `report` is the old file's: it says in which batches the file runs, and whether it resizes. Raises ParityError if a
    figure differs by more than float32's tolerance.
    """
    comparison = _Comparison(Switches(bundle), frozenset(off), frozenset(bundle.curation.off))
    pictures = gate_pictures(bundle)
    if report.resize is not None:
        batches = {1: [picture[None] for picture in pictures]}
    else:
        fitted = np.stack([fit(decode(picture), bundle.input).array for picture in pictures])
        batches = {size: list(_batches(fitted, size)) for size in report.batches}
    reports = {size: comparison.run(old, new, parts) for size, parts in batches.items()}
    return TargetReport(
        precision=report.precision,
        pictures=len(pictures),
        tolerance=Tolerance(),
        resize=report.resize,
        batches=reports,
    )


def _batches(pictures: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    """Split into batches of exactly `size`; the first pictures fill the last one."""
    whole = pictures[np.arange(-(-len(pictures) // size) * size) % len(pictures)]
    yield from np.split(whole, len(whole) // size)


@dataclass(frozen=True)
class _Comparison:
    """Compares answers with `off` and with `off_before` switched off."""

    switches: Switches
    off: frozenset[int]
    off_before: frozenset[int]

    def run(self, old: Runtime, new: Runtime, batches: Sequence[NDArray[np.uint8]]) -> BatchReport:
        """Run both files on all batches and compare; raises ParityError as `check_switched` does."""
        either, fixed = sorted(self.off | self.off_before), sorted(self.off)
        worst = dict.fromkeys((*_COMPARED, "usual", "sum"), 0.0)
        same: list[NDArray[np.bool_]] = []
        for batch in batches:
            answer = _outputs(new(batch))
            expected = self.switches.without(_outputs(old(batch)), either)
            found = self.switches.without(answer, either)
            pairs = {name: (getattr(expected, name), getattr(found, name)) for name in _COMPARED}
            pairs["usual"] = self.switches.usual[fixed], answer.similarity[:, fixed]
            pairs["sum"] = self.switches.evidence.logits([answer]), answer.logit
            for name, pair in pairs.items():
                worst[name] = max(worst[name], float(np.abs(np.subtract(*pair, dtype=np.float64)).max(initial=0.0)))
            same.append((expected.path == found.path).all(axis=1))
        # Where the paths differ, the probabilities still agree: the leaves are as probable as each other.
        for name, value in worst.items():
            if not value <= Tolerance().logit:
                raise ParityError(
                    f"parity: {name} of a changed file differs by {value:.3g}, more than the tolerance "
                    f"{Tolerance().logit:g}; no bundle was written"
                )
        paths = np.concatenate(same)
        return BatchReport(
            worst_difference=worst, agreement={"path": float(paths.mean())}, near_ties={"path": int((~paths).sum())}
        )


def _outputs(arrays: Arrays) -> Outputs:
    return Outputs(**{field.name: arrays[field.name] for field in fields(Outputs) if field.name in arrays})

"""Opens a bundle's file of any target in its own runtime, to verify answers with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.parity import Runtime
from export.records import read_parity
from export.targets.table import target_named
from protoserve.bundle.folder import Bundle
from protoserve.graph_signature import OUTPUT_NAMES, named_arrays
from protoserve.inference.routed_engine import RoutedEngine

ROUTED_NOTE: Final = (
    "a routed graph answers along the predicted path: the path, its probabilities and its evidence were compared with "
    "its own; alternatives, known, sufficient and what options change come from the full graph"
)


@dataclass(frozen=True)
class OpenedTarget:
    """A file in its runtime: `run` returns the outputs of the full graph by name for pictures uint8 [N, H, W, 3];
    `note` says what of them is not the file's own."""

    run: Runtime
    note: str = ""


def open_target(bundle: Bundle, target: str) -> OpenedTarget:
    """Open a bundle's file; a file of a fixed batch gets the pictures repeated.

    Raises InputError for an unknown target, BundleError for a target that the bundle does not have, MissingExtraError
    without its runtime.
    """
    found = target_named(target)
    file = bundle.file(target)
    if found.routed:
        return OpenedTarget(_routed(file, bundle.file("onnx")), ROUTED_NOTE)
    run = found.run(file)
    report = read_parity(bundle.directory)[target]
    sizes = [int(size) for size in report.batches]
    count = sizes[0] if len(sizes) == 1 else 1

    def repeated(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        arrays = run(np.ascontiguousarray(np.resize(pictures, (count, *pictures.shape[1:]))))
        return {name: array[: len(pictures)] for name, array in arrays.items()}

    return OpenedTarget(repeated)


def _routed(file: Path, full: Path) -> Runtime:
    """A runtime that gives a routed graph's outputs along its path, and the full graph's elsewhere."""
    engine = RoutedEngine(file, full)

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        arrays, routed = named_arrays(engine.whole(pictures)), named_arrays(engine.run(pictures))
        images, levels = np.nonzero(routed["path"] >= 0)
        nodes = routed["path"][images, levels]
        for name in ("log_probability", "logit"):
            arrays[name] = arrays[name].copy()
            arrays[name][images, nodes] = routed[f"path_{name}"][images, levels]
        return arrays | {name: array for name, array in routed.items() if name in OUTPUT_NAMES}

    return run

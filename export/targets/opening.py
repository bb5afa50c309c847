"""Opens a bundle's file of any target in its own runtime, to verify answers with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity import Runtime
from export.records import read_parity
from export.targets.table import target_named
from protoserve.bundle.folder import Bundle
from protoserve.errors import InputError


def open_target(bundle: Bundle, target: str) -> Runtime:
    """Open a bundle's file; a file of a fixed batch gets the pictures repeated.

    Raises InputError for an unknown target and for a routed graph, which has no outputs beside its path, BundleError
    for a target that the bundle does not have, MissingExtraError without its runtime.
    """
    found = target_named(target)
    if found.routed:
        raise InputError(
            f"the target {target!r} answers along the predicted path only; verify with onnx, its full graph"
        )
    run = found.run(bundle.file(target))
    report = read_parity(bundle.directory)[target]
    sizes = [int(size) for size in report.batches]
    count = sizes[0] if len(sizes) == 1 else 1

    def repeated(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        arrays = run(np.ascontiguousarray(np.resize(pictures, (count, *pictures.shape[1:]))))
        return {name: array[: len(pictures)] for name, array in arrays.items()}

    return repeated

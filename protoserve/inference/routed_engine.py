"""A routed graph in onnxruntime, and the full graph where its certificate does not hold: images in, paths out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from protoserve.errors import BundleError, InputError
from protoserve.inference.engine import INPUT


@dataclass(frozen=True)
class PathAnswer:
    """The answer for N images along their predicted paths; L levels, k evidence, h × w cells."""

    path: NDArray[np.int64]
    """[N, L] the predicted node of every level; −1 below the most probable leaf's own."""
    path_log_probability: NDArray[np.float32]
    """[N, L] log of their unconditional probabilities; 0 where there is no node."""
    path_logit: NDArray[np.float32]
    """[N, L] the sums of the contributions of their prototypes."""
    evidence_prototype: NDArray[np.int64]
    """[N, L, k] prototypes by falling contribution; −1 where there are no more."""
    evidence_similarity: NDArray[np.float32]
    evidence_weight: NDArray[np.float32]
    evidence_contribution: NDArray[np.float32]
    evidence_cell: NDArray[np.int64]
    evidence_map: NDArray[np.float32]
    """[N, L, k, h, w] the similarity at every cell."""
    routed: NDArray[np.bool_]
    """[N] whether the routed graph was certain; the others were answered by the full graph."""


_BOTH = tuple(field.name for field in fields(PathAnswer) if field.name.startswith("evidence_"))
_ROUTED = ("path", "path_log_probability", "path_logit", *_BOTH, "certain")
_FULL = ("path", "log_probability", "logit", *_BOTH)


class RoutedEngine:
    """Two graphs of one network, loaded once, on the CPU; `threads` bounds those of one call.

    Raises BundleError where a file is no graph or lacks an output.
    """

    def __init__(self, routed: Path, full: Path, threads: int | None = None) -> None:
        self.routed = _session(routed, _ROUTED, threads)
        self.full = _session(full, _FULL, threads)

    def run(self, images: NDArray[np.uint8]) -> PathAnswer:
        """Answer for uint8 RGB images [N, height, width, 3] at model size, N ≥ 1. Raises InputError for anything else.

        The full graph sees only the images of which the routed one is not certain.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise InputError(f"a graph takes uint8 images [N, height, width, 3], not {images.dtype} {images.shape}")
        found = dict(zip(_ROUTED, self.routed.run(list(_ROUTED), {INPUT: images}), strict=True))
        certain = found.pop("certain")
        if not certain.all():
            unsure = np.flatnonzero(~certain)
            full = dict(zip(_FULL, self.full.run(list(_FULL), {INPUT: images[unsure]}), strict=True))
            for name, values in _along_path(full).items():
                found[name][unsure] = values
        return PathAnswer(**found, routed=certain)


def _along_path(full: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    path = full["path"]
    nodes = np.maximum(path, 0)
    values = {
        f"path_{name}": np.where(path < 0, 0.0, np.take_along_axis(full[name], nodes, axis=1)).astype(np.float32)
        for name in ("log_probability", "logit")
    }
    return {"path": path} | values | {name: full[name] for name in _BOTH}


def _session(file: Path, outputs: tuple[str, ...], threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except (RuntimeError, ValueError) as error:
        raise BundleError(f"{file}: not a graph that onnxruntime can load ({error}); export it again") from error
    if missing := set(outputs) - {output.name for output in session.get_outputs()}:
        raise BundleError(f"{file}: has no output {min(missing)!r}; export it again")
    return session

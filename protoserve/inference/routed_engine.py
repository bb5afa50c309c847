"""The engine of a routed graph; images for which its certificate does not hold go through the full graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from protoserve.errors import BundleError, InputError
from protoserve.graph_signature import (
    INPUT,
    OUTPUT_NAMES,
    OUTPUTS,
    ROUTED_OUTPUT_NAMES,
    ROUTED_OUTPUTS,
    GraphOutput,
    RoutedExplanation,
)
from protoserve.inference.engine import RUNTIME_ERRORS, Outputs, check_values

RoutedOutputs: TypeAlias = RoutedExplanation[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]

# The outputs of the full graph from which a routed answer can be made.
_EVIDENCE = tuple(name for name in ROUTED_OUTPUT_NAMES if name.startswith("evidence_"))
_FULL = ("path", "log_probability", "logit", *_EVIDENCE)


class RoutedEngine:
    """A routed and a full graph of one network, loaded once, on the CPU; `threads` limits the threads of one call.

    Raises BundleError if a file is not a graph or lacks an output.
    """

    def __init__(self, routed: Path, full: Path, threads: int | None = None) -> None:
        self.routed = _session(routed, ROUTED_OUTPUTS, threads)
        self.full = _session(full, [output for output in OUTPUTS if output.name in _FULL], threads)

    def run(self, images: NDArray[np.uint8]) -> RoutedOutputs:
        """Run the graphs on uint8 RGB images [N, height, width, 3] at model size, N ≥ 1.

        The full graph runs only on images that are not `certain`. Raises InputError for other arrays.
        """
        self._check(images)
        names = list(ROUTED_OUTPUT_NAMES)
        arrays = dict(zip(names, self.routed.run(names, {INPUT: images}), strict=True))
        uncertain = np.flatnonzero(~arrays["certain"])
        if len(uncertain):
            full = dict(zip(_FULL, self.full.run(list(_FULL), {INPUT: images[uncertain]}), strict=True))
            for name, values in _along_path(full).items():
                arrays[name][uncertain] = values
        return RoutedExplanation(**arrays)

    def whole(self, images: NDArray[np.uint8]) -> Outputs:
        """Run the full graph on all images, as `Engine.run` does, for questions about nodes off the predicted path.

        A routed graph scores the branches that can win and does not say which, so it can't answer "why not X?"
        (`protoserve.inference.contrast`). Raises InputError for other arrays, and BundleError for a full graph of
        format 1, which lacks outputs.
        """
        self._check(images)
        listed = {output.name for output in self.full.get_outputs()}
        if missing := [name for name in OUTPUT_NAMES if name not in listed]:
            raise BundleError(f"the full graph has no output {missing[0]!r}; export the run again")
        return Outputs(**dict(zip(OUTPUT_NAMES, self.full.run(list(OUTPUT_NAMES), {INPUT: images}), strict=True)))

    def _check(self, images: NDArray[np.uint8]) -> None:
        expected = self.routed.get_inputs()[0].shape
        # Dynamic dimensions have names.
        fits = images.ndim == len(expected) and all(
            size == stated or not isinstance(stated, int) for size, stated in zip(images.shape, expected, strict=True)
        )
        if images.dtype != np.uint8 or not fits or not len(images):
            shape = ", ".join(map(str, expected))
            raise InputError(f"the routed graph takes uint8 images [{shape}], not {images.dtype} {list(images.shape)}")


def _along_path(full: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Convert the full graph's outputs to those of a routed graph, without `certain`."""
    path = full["path"]
    nodes = np.maximum(path, 0)
    values = {
        f"path_{name}": np.where(path < 0, 0.0, np.take_along_axis(full[name], nodes, axis=1)).astype(np.float32)
        for name in ("log_probability", "logit")
    }
    return {"path": path} | values | {name: full[name] for name in _EVIDENCE}


def _session(file: Path, outputs: Sequence[GraphOutput], threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise BundleError(f"{file}: not a graph that onnxruntime can load ({error}); export it again") from error
    check_values(session.get_outputs(), outputs, {}, file)
    return session

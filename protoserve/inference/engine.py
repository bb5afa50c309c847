"""An onnxruntime session over a bundle: images in, arrays out."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_state

from protoserve.bundle.folder import Bundle
from protoserve.errors import BundleError, DeviceError, InputError

Device: TypeAlias = Literal["auto", "cpu", "cuda"]

DEVICES: Final = ("auto", "cpu", "cuda")
INPUT: Final = "image"

_LOG = logging.getLogger(__name__)
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
# onnxruntime's exceptions share no base class of their own.
_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(found for found in vars(onnxruntime_state).values() if isinstance(found, type) and issubclass(found, Exception)),
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Outputs:
    """The graph's answer for N images; V nodes, L levels, k evidence, P prototypes, h × w cells.

    A cell's number is `row * w + column`.
    """

    log_probability: NDArray[np.float32]
    """[N, V] log of every node's unconditional probability, in the taxonomy's node order."""
    logit: NDArray[np.float32]
    """[N, V] the sum of the contributions of a node's prototypes; 0 for a node without a head."""
    path: NDArray[np.int64]
    """[N, L] the predicted node of every level; −1 below the most probable leaf's own."""
    evidence_prototype: NDArray[np.int64]
    """[N, L, k] prototypes by falling contribution to the level's node; −1 where there are no more."""
    evidence_similarity: NDArray[np.float32]
    """[N, L, k] their similarities; 0 where there is none."""
    evidence_weight: NDArray[np.float32]
    """[N, L, k] their weights for the level's node."""
    evidence_contribution: NDArray[np.float32]
    """[N, L, k] weight × similarity."""
    evidence_cell: NDArray[np.int64]
    """[N, L, k] the cell of the greatest similarity; −1 where there is none."""
    evidence_map: NDArray[np.float32]
    """[N, L, k, h, w] the similarity at every cell."""
    similarity: NDArray[np.float32]
    """[N, P] every prototype's greatest similarity over the cells."""
    cell: NDArray[np.int64]
    """[N, P] the cell where it lies."""
    known: NDArray[np.bool_] | None = None
    """[N, L] whether the picture is known at each level, where an ensemble's members have voted on it; no graph's."""

    def __len__(self) -> int:
        return len(self.path)

    def rows(self, start: int, stop: int) -> Outputs:
        """The answer for the images `start` to `stop` (exclusive) alone: views, not copies."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {name: None if array is None else array[start:stop] for name, array in arrays.items()}
        return Outputs(**parts)


OUTPUTS: Final = tuple(field.name for field in fields(Outputs) if field.name != "known")


class Engine:
    """A bundle's graph, loaded once; `run` may be called from several threads at a time.

    `device` says where it runs, `"cpu"` or `"cuda"`: `"auto"` takes CUDA where it works and the CPU
    elsewhere. `threads` bounds the threads of one call on the CPU (default: one per core).

    Raises DeviceError when CUDA is asked for and can't be used, BundleError when the graph is damaged or
    does not fit its manifest, InputError for an unknown device or a thread count below 1.
    """

    def __init__(self, bundle: Bundle, device: Device = "auto", threads: int | None = None) -> None:
        if device not in DEVICES:
            raise InputError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, not {threads}")
        rule = bundle.manifest.input
        self._bundle = bundle
        self._image_shape = (rule.height, rule.width, 3)
        self._session, self.device = self._open(device, threads)
        _check_signature(self._session, bundle)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Answer for uint8 RGB images [N, height, width, 3] at model size, N ≥ 1.

        Raises InputError for another shape or dtype, DeviceError when the device fails (for example, out of
        memory).
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self._image_shape or not len(images):
            height, width, _ = self._image_shape
            raise InputError(
                f"the model takes uint8 images [N, {height}, {width}, 3], not {images.dtype} "
                f"{list(images.shape)}; make them with protoserve.images.fitting.fit"
            )
        try:
            arrays = self._session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(images)})
        except _RUNTIME_ERRORS as error:
            raise DeviceError(
                f"the graph failed on {self.device} for {len(images)} images ({error}); try fewer at a time"
            ) from error
        return Outputs(*arrays)

    def _open(self, device: Device, threads: int | None) -> tuple[Any, Literal["cpu", "cuda"]]:
        if device == "cuda" or (device == "auto" and _cuda_driver()):
            try:
                return self._cuda_session(threads), "cuda"
            except DeviceError as error:
                if device == "cuda":
                    raise
                _LOG.warning("using the CPU, though an NVIDIA driver is here: %s", error)
        return self._new_session([_CPU], threads), "cpu"

    def _cuda_session(self, threads: int | None) -> Any:
        """A session that has run on CUDA: one that loads may still lack kernels for the device."""
        offered = onnxruntime.get_available_providers()
        if _CUDA not in offered:
            raise DeviceError(
                f"this onnxruntime runs on {', '.join(offered)}, not on CUDA; install onnxruntime-gpu or "
                "choose the device cpu"
            )
        if not _cuda_driver():
            raise DeviceError(
                "CUDA was asked for, but this machine has no NVIDIA driver (libcuda), only the CPU; choose "
                "the device cpu or auto"
            )
        # It finds CUDA and cuDNN in NVIDIA's Python packages, and prints what it does not find.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
        # TF32 keeps 10 bits of the mantissa: distances, and so the evidence, would differ from the CPU's.
        session = self._new_session([(_CUDA, {"use_tf32": "0"}), _CPU], threads)
        if _CUDA not in session.get_providers():
            raise DeviceError(
                f"CUDA was asked for, but onnxruntime {onnxruntime.__version__} could only use "
                f"{', '.join(session.get_providers())}; install the CUDA and cuDNN that it was built for, or "
                "choose the device cpu"
            )
        try:
            session.run([OUTPUTS[0]], {INPUT: np.zeros((1, *self._image_shape), dtype=np.uint8)})
        except _RUNTIME_ERRORS as error:
            raise DeviceError(f"CUDA failed on a first image ({error}); choose the device cpu") from error
        return session

    def _new_session(self, providers: list[Any], threads: int | None) -> Any:
        options = onnxruntime.SessionOptions()
        # The optimiser's warnings mean nothing to a user; errors come as exceptions.
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        file = self._bundle.file("onnx")
        try:
            # Where a provider fails, onnxruntime says so on standard output.
            with contextlib.redirect_stdout(sys.stderr):
                session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except _RUNTIME_ERRORS as error:
            raise BundleError(f"{file}: not a graph that onnxruntime can load ({error}); export it again") from error
        # It would change the device in the middle of a run, unasked.
        session.disable_fallback()
        return session


def _cuda_driver() -> bool:
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _check_signature(session: Any, bundle: Bundle) -> None:
    """Every input and output of the contract, with the sizes that the manifest states."""
    file, rule, graph = bundle.file("onnx"), bundle.manifest.input, bundle.manifest.graph
    nodes, levels, top_k = len(bundle.taxonomy.nodes), bundle.taxonomy.depth, graph.top_k
    evidence = (levels, top_k)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        INPUT: ("uint8", (rule.height, rule.width, 3)),
        "log_probability": ("float", (nodes,)),
        "logit": ("float", (nodes,)),
        "path": ("int64", (levels,)),
        "evidence_prototype": ("int64", evidence),
        "evidence_similarity": ("float", evidence),
        "evidence_weight": ("float", evidence),
        "evidence_contribution": ("float", evidence),
        "evidence_cell": ("int64", evidence),
        "evidence_map": ("float", (*evidence, graph.rows, graph.columns)),
        "similarity": ("float", (graph.prototypes,)),
        "cell": ("int64", (graph.prototypes,)),
    }
    inputs = [value.name for value in session.get_inputs()]
    if inputs != [INPUT]:
        raise BundleError(f"{file}: takes {inputs}, not only {INPUT!r}; export the bundle again")
    found = {value.name: value for value in (*session.get_inputs(), *session.get_outputs())}
    for name, (kind, shape) in expected.items():
        if name not in found:
            raise BundleError(f"{file}: has no output {name!r}; export the bundle again")
        value = found[name]
        # A dimension that the graph leaves open is a string or None; N always is.
        fits = len(value.shape) == len(shape) + 1 and all(
            stated == size or not isinstance(stated, int) for stated, size in zip(value.shape[1:], shape, strict=True)
        )
        if value.type != f"tensor({kind})" or not fits:
            raise BundleError(
                f"{file}: {name!r} is {value.type} {value.shape}, but the manifest says {kind} [N, "
                f"{', '.join(map(str, shape))}]; export the bundle again"
            )

"""An onnxruntime session over a bundle: images in, arrays out."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_state

from protoserve.bundle.folder import Bundle
from protoserve.device import DEVICES, Device, has_nvidia_driver
from protoserve.errors import BundleError, DeviceError, InputError
from protoserve.graph_signature import (
    INPUT,
    OUTPUT_NAMES,
    OUTPUTS,
    OUTPUTS_OF_FORMAT_2,
    Explanation,
    GraphOutput,
    named_arrays,
)
from protoserve.inference.last_layers import HostEvidence, MemberLayers, read_last_layers
from protoserve.novelty import NoveltyTable

_LOG = logging.getLogger(__name__)
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
PICTURE: Final = GraphOutput(INPUT, "uint8", ("images", "height", "width", "channels"))
# onnxruntime's exceptions share no base class of their own.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(onnxruntime_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Outputs(Explanation[NDArray[np.float32], NDArray[np.int64]]):
    """The outputs of the full graph for N images; those of an ensemble also hold `known`."""

    known: NDArray[np.bool_] | None = None
    """[N, levels] whether the picture is known at each level; None if no member of an ensemble has voted on it."""
    route: NDArray[np.str_] | None = None
    """[N] `routed` if the picture's outputs come from the routed graph; else from the full one, because the request
    asked for more (`asked`), the certificate did not hold (`uncertain`), or it did not hold for the `alternatives`.
    None without a routed graph."""

    def __len__(self) -> int:
        return len(self.path)

    def rows(self, start: int, stop: int) -> Outputs:
        """Return views of the outputs for the images from `start` to `stop` (exclusive)."""
        parts = {name: array[start:stop] for name, array in named_arrays(self).items()}
        return Outputs(
            **parts,
            known=None if self.known is None else self.known[start:stop],
            route=None if self.route is None else self.route[start:stop],
        )

    def selected(self, images: NDArray[np.bool_]) -> Outputs:
        """Return the outputs for the `images` bool [N] alone; themselves if those are all."""
        if images.all():
            return self
        return Outputs(**{name: array[images] for name, array in named_arrays(self).items()})


def in_order(parts: Sequence[tuple[NDArray[np.int64], Outputs]]) -> Outputs:
    """Join the outputs of some images, in the order of these images' numbers."""
    if len(parts) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([images for images, _ in parts]))
    named = [named_arrays(outputs) for _, outputs in parts]
    return Outputs(**{name: np.concatenate([arrays[name] for arrays in named])[order] for name in OUTPUT_NAMES})


class Engine:
    """A bundle's graph, loaded once; several threads may call `run` at the same time.

    `"auto"` selects CUDA if it works, else the CPU; the attribute `device` says which, `"cpu"` or `"cuda"`. `threads`
    limits the CPU threads of one call (default: one per core).

    Raises DeviceError if CUDA is requested and can't be used, BundleError if the graph is damaged or does not match its
    manifest, and InputError for an unknown device or a thread count below 1.
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
        self._names = _check_signature(self._session, bundle)
        self._complete = None if self._names == OUTPUT_NAMES else Completion(bundle)

    def run(self, images: NDArray[np.uint8], *, seconds: float | None = None) -> Outputs:
        """Run the graph on uint8 RGB images [N, height, width, 3] at model size, N ≥ 1.

        Raises InputError for another shape or dtype, DeviceError if the device fails (for example, out of memory) or
        the graph has not ended after `seconds`, as one with an endless loop.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self._image_shape or not len(images):
            height, width, _ = self._image_shape
            raise InputError(
                f"the model takes uint8 images [N, {height}, {width}, 3], not {images.dtype} "
                f"{list(images.shape)}; make them with protoserve.images.fitting.fit"
            )
        arrays = run_session(self._session, self._names, images, seconds, self.device)
        found = dict(zip(self._names, arrays, strict=True))
        return Outputs(**found if self._complete is None else self._complete(found))

    def _open(self, device: Device, threads: int | None) -> tuple[Any, Literal["cpu", "cuda"]]:
        if device == "cuda" or (device == "auto" and has_nvidia_driver()):
            try:
                return self._cuda_session(threads), "cuda"
            except DeviceError as error:
                if device == "cuda":
                    raise
                _LOG.warning("using the CPU although this machine has an NVIDIA driver: %s", error)
        return self._new_session([_CPU], threads), "cpu"

    def _cuda_session(self, threads: int | None) -> Any:
        """Open a session on CUDA and run it once: a session that loads may still lack kernels for the device."""
        offered = onnxruntime.get_available_providers()
        if _CUDA not in offered:
            raise DeviceError(
                f"this onnxruntime supports {', '.join(offered)}, not CUDA; install onnxruntime-gpu or choose the "
                "device cpu"
            )
        if not has_nvidia_driver():
            raise DeviceError(
                "CUDA was requested, but this machine has no NVIDIA driver (libcuda); choose the device cpu or auto"
            )
        # `preload_dlls` finds CUDA and cuDNN in NVIDIA's Python packages, and prints the libraries that are missing.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
        # TF32 keeps only 10 bits of the mantissa, so distances and evidence would differ from those of the CPU.
        session = self._new_session([(_CUDA, {"use_tf32": "0"}), _CPU], threads)
        if _CUDA not in session.get_providers():
            raise DeviceError(
                f"CUDA was requested, but onnxruntime {onnxruntime.__version__} could only use "
                f"{', '.join(session.get_providers())}; install the CUDA and cuDNN that it was built for, or "
                "choose the device cpu"
            )
        try:
            session.run([OUTPUT_NAMES[0]], {INPUT: np.zeros((1, *self._image_shape), dtype=np.uint8)})
        except RUNTIME_ERRORS as error:
            raise DeviceError(f"CUDA failed on a first image ({error}); choose the device cpu") from error
        return session

    def _new_session(self, providers: list[Any], threads: int | None) -> Any:
        return open_session(self._bundle.file("onnx"), threads, providers)


def open_session(file: Path, threads: int | None, providers: Sequence[Any] = (_CPU,)) -> Any:
    """Open an onnxruntime session of an ONNX file; `threads` limits the CPU threads of one call.

    Raises BundleError for a file that is not a graph.
    """
    options = onnxruntime.SessionOptions()
    # The graph optimiser's warnings do not help users. Errors arrive as exceptions.
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # onnxruntime prints provider failures on standard output.
        with contextlib.redirect_stdout(sys.stderr):
            session = onnxruntime.InferenceSession(str(file), options, providers=list(providers))
    except RUNTIME_ERRORS as error:
        raise BundleError(f"{file}: not a graph that onnxruntime can load ({error}); export it again") from error
    # The fallback would switch to another device silently in the middle of a run.
    session.disable_fallback()
    return session


def run_session(
    session: Any, names: Sequence[str], images: NDArray[np.uint8], seconds: float | None, device: str
) -> list[NDArray[Any]]:
    """Return the outputs of these `names` for `images` at model size.

    Raises DeviceError, which names the `device`, if the graph fails or has not ended after `seconds`.
    """
    options = None if seconds is None else onnxruntime.RunOptions()
    try:
        with _ended_after(seconds, options):
            arrays: list[NDArray[Any]] = session.run(list(names), {INPUT: np.ascontiguousarray(images)}, options)
    except RUNTIME_ERRORS as error:
        if options is not None and options.terminate:
            raise DeviceError(
                f"the graph did not end within {seconds:g} seconds on {device} for {len(images)} images; "
                "export the bundle again"
            ) from error
        raise DeviceError(
            f"the graph failed on {device} for {len(images)} images ({error}); try fewer at a time"
        ) from error
    return arrays


@contextlib.contextmanager
def _ended_after(seconds: float | None, options: Any) -> Iterator[None]:
    """End the run with these RunOptions after `seconds`, between two operators of its graph."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Completion:
    """The outputs that a graph of format 1 lacks, and centred evidence where its bundle was centred since."""

    def __init__(self, bundle: Bundle) -> None:
        children = [bundle.taxonomy.index[record.child] for record in bundle.manifest.prototypes]
        table = NoveltyTable.of(bundle.taxonomy, bundle.kind, children)
        layers = read_last_layers(bundle, table)
        self.centred = layers is not None and layers.centred
        self.evidence = (
            None
            if layers is None
            else HostEvidence(bundle.taxonomy, table, [MemberLayers(layers.groups)], bundle.top_k, bundle.grid)
        )

    def __call__(self, found: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs, from those that the graph has."""
        shape = found["evidence_prototype"].shape
        blank: dict[str, NDArray[Any]] = {name: np.zeros(shape, np.float32) for name in OUTPUTS_OF_FORMAT_2}
        blank |= {name: np.full(shape, -1, dtype=np.int64) for name in ("against_prototype", "against_cell")}
        # Without the last layers nobody knows what the hidden prototypes add.
        blank["positive_contribution"] = np.full(shape[:2], np.nan, dtype=np.float32)
        whole = Outputs(**found, **blank)
        if self.evidence is None:
            return named_arrays(whole)
        changed: dict[str, NDArray[Any]] = self.evidence.on_path([whole], whole.path)
        if self.centred:
            changed["logit"] = self.evidence.logits([whole]).astype(np.float32)
        return named_arrays(replace(whole, **changed))


def _check_signature(session: Any, bundle: Bundle) -> tuple[str, ...]:
    """The names of the graph's outputs; raises BundleError unless it has exactly our input and every output of the
    bundle's format, with the manifest's sizes."""
    file, rule, graph = bundle.file("onnx"), bundle.manifest.input, bundle.manifest.graph
    inputs = [value.name for value in session.get_inputs()]
    if inputs != [INPUT]:
        raise BundleError(f"{file}: its inputs are {inputs}, not only {INPUT!r}; export the bundle again")
    check_values(session.get_inputs(), (PICTURE,), {"height": rule.height, "width": rule.width, "channels": 3}, file)
    sizes = {
        "nodes": len(bundle.taxonomy.nodes),
        "levels": bundle.taxonomy.depth,
        "evidence": graph.top_k,
        "rows": graph.rows,
        "columns": graph.columns,
        "prototypes": graph.prototypes,
    }
    older = not graph.centred
    outputs = [output for output in OUTPUTS if not (older and output.name in OUTPUTS_OF_FORMAT_2)]
    check_values(session.get_outputs(), outputs, sizes, file)
    return tuple(output.name for output in outputs)


def check_values(listed: Sequence[Any], declared: Sequence[GraphOutput], sizes: Mapping[str, int], file: Path) -> None:
    """Raise BundleError unless a graph's inputs or outputs, as `listed` by onnxruntime, are as `declared`.

    `sizes` maps names of dimensions to their sizes. A dimension may have any size if it is not in `sizes` or is dynamic
    in the graph.
    """
    values = {value.name: value for value in listed}
    for expected in declared:
        if expected.name not in values:
            raise BundleError(f"{file}: has no output {expected.name!r}; export the bundle again")
        value = values[expected.name]
        # onnxruntime lists dynamic dimensions as strings or None.
        fits = len(value.shape) == len(expected.dimensions) and all(
            not isinstance(stated, int) or stated == sizes.get(name, stated)
            for stated, name in zip(value.shape, expected.dimensions, strict=True)
        )
        if value.type != f"tensor({expected.dtype})" or not fits:
            shape = ", ".join(str(sizes.get(name, name)) for name in expected.dimensions[1:])
            raise BundleError(
                f"{file}: {expected.name!r} is {value.type} {value.shape}, but the manifest says {expected.dtype} [N, "
                f"{shape}]; export the bundle again"
            )

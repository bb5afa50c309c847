"""The table of targets: the file of each, its runtime, its writer and its checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from export.graph import RoutedGraph, write_onnx, write_torchscript
from export.parity import FLOAT16, FLOAT32, INT8, Fitter, Precision, Runtime
from export.sources import Source, finish_onnx
from export.targets import (
    executorch_files,
    litert_files,
    onnx_files,
    openvino_files,
    quantising,
    torch_files,
    triton,
    web,
)
from export.targets.converters import converter
from protoserve.errors import InputError, nearest

# The number of nodes that a routed graph expands per level; see benchmarks/accuracy/routing.py.
ROUTED_WIDTH: Final = 6


@dataclass(frozen=True)
class Target:
    """A file format of the graph.

    - `metadata`: the location of the labels; `checked`: the checks before publishing;
    - `write` writes the file, `run` opens it in its runtime;
    - `next_step`: a command that tries the file, with the placeholders FILE and FOLDER;
    - `resizes`: the file always takes pictures of any size;
    - `planned`: the format fixes its memory when it is written, so the file takes one batch size (by default 1) and
      pictures of the model's size only;
    - `fitter` runs an ONNX file that only resizes, for a runtime whose pixels may differ from PyTorch's;
    - `run_unoptimised` opens the file without its runtime's optimisation of graphs, for files of less precision, whose
      result must not depend on it;
    - `routed`: the file answers only along the predicted path, and reports whether it is certain (see `RoutedHead`).
    """

    file: str
    runtime: str
    metadata: str
    checked: str
    write: Callable[[Source, Path], None]
    run: Callable[[Path], Runtime]
    next_step: str
    precision: Precision = FLOAT32
    resizes: bool = False
    planned: bool = False
    fitter: Callable[[Path], Fitter] | None = None
    run_unoptimised: Callable[[Path], Runtime] | None = None
    routed: bool = False


def _example(script: str) -> str:
    return f"python examples/{script} FILE PHOTO.jpg"


def _plain(source: Source, file: Path) -> None:
    onnx_files.copy(source.graphs.onnx, file)
    finish_onnx(source, file)


def _triton(source: Source, file: Path) -> None:
    file.parent.mkdir(parents=True)
    _plain(source, file)
    triton.write_beside(file, source.metadata)


def _routed(source: Source, file: Path) -> None:
    graphs = source.graphs
    routed = RoutedGraph(graphs.explained.network, graphs.explained.head.top_k, ROUTED_WIDTH).eval()
    write_onnx(routed, graphs.fitted, file, {}, dynamic={} if graphs.options.batches else None)
    finish_onnx(source, file)


def _half(source: Source, file: Path) -> None:
    onnx_files.write_half(source.graphs.onnx, file)
    finish_onnx(source, file)


def _int8(source: Source, file: Path) -> None:
    assert source.calibration is not None  # `_check_options` requires --data
    quantising.write_int8(source.graphs.onnx, file, source.calibration, source.graphs.options.batches, source.report)
    finish_onnx(source, file)


def _litert(source: Source, file: Path) -> None:
    python = converter("litert", litert_files.PACKAGE, source.converters, source.report)
    source.report(f"converting {file.name}")
    litert_files.write_litert(source.graphs.whole, source.graphs.example, file, source.metadata, python)


def _by_way_of_onnx(
    write: Callable[[Source, Path, Path], None], *, stamped: bool = True
) -> Callable[[Source, Path], None]:
    """Make a writer that starts from an ONNX file with the resizing part and, if `stamped`, the metadata."""

    def write_from_onnx(source: Source, file: Path) -> None:
        with TemporaryDirectory() as folder:
            whole = Path(folder) / "model.onnx"
            _plain(source if stamped else replace(source, metadata={}), whole)
            write(source, whole, file)

    return write_from_onnx


TARGETS: Final[dict[str, Target]] = {
    "onnx": Target(
        file="model.onnx",
        runtime="onnxruntime",
        metadata="inside",
        checked="parity",
        write=_plain,
        run=onnx_files.run_onnx,
        next_step="protoserve serve FOLDER --port 3000",
    ),
    "onnx-edge": Target(
        file="model.edge.onnx",
        runtime="onnxruntime",
        metadata="inside",
        checked="parity",
        write=_plain,
        run=onnx_files.run_onnx,
        next_step=_example("onnx_edge.py"),
    ),
    "onnx-routed": Target(
        file="model.routed.onnx",
        runtime="onnxruntime",
        metadata="inside",
        checked="parity, where its certificate holds",
        write=_routed,
        run=onnx_files.run_routed,
        next_step='ORT_DISABLE_TELEMETRY=1 python -c "import onnxruntime; '
        "print([output.name for output in onnxruntime.InferenceSession('FILE').get_outputs()])\"",
        routed=True,
    ),
    "triton": Target(
        file=triton.FILE,
        runtime="Triton Inference Server",
        metadata="inside",
        checked="parity (the graph in onnxruntime)",
        write=_triton,
        run=onnx_files.run_onnx,
        next_step="tritonserver --model-repository FOLDER/triton",
    ),
    "onnx-fp16": Target(
        file="model.fp16.onnx",
        runtime="onnxruntime",
        metadata="inside",
        checked="parity, accuracy, evidence",
        write=_half,
        run=onnx_files.run_onnx,
        next_step=_example("onnx_edge.py"),
        precision=FLOAT16,
        run_unoptimised=onnx_files.run_unoptimised,
    ),
    "onnx-int8": Target(
        file="model.int8.onnx",
        runtime="onnxruntime",
        metadata="inside",
        checked="parity, accuracy, evidence",
        write=_int8,
        run=onnx_files.run_onnx,
        next_step=_example("onnx_edge.py"),
        precision=INT8,
        run_unoptimised=onnx_files.run_unoptimised,
    ),
    "ort": Target(
        file="model.ort",
        runtime="onnxruntime (also its minimal builds), made for Arm",
        metadata="inside",
        checked="parity",
        write=_by_way_of_onnx(lambda source, whole, file: onnx_files.write_ort(whole, file)),
        run=onnx_files.run_onnx,
        next_step=_example("onnx_edge.py"),
    ),
    "torchscript": Target(
        file="model.torchscript",
        runtime="libtorch",
        metadata="inside",
        checked="parity",
        write=lambda source, file: write_torchscript(source.graphs.whole, source.graphs.example, file, source.metadata),
        run=torch_files.run_torchscript,
        next_step="python -c \"import torch; print(torch.jit.load('FILE'))\"",
    ),
    "torch-export": Target(
        file="model.pt2",
        runtime="libtorch",
        metadata="inside",
        checked="parity",
        write=lambda source, file: torch_files.write_torch_export(
            source.graphs.whole, source.graphs.example, source.graphs.dynamic, file, source.metadata
        ),
        run=torch_files.run_torch_export,
        next_step="python -c \"import torch; print(torch.export.load('FILE').graph_signature)\"",
    ),
    "openvino": Target(
        file="model.openvino.xml",
        runtime="OpenVINO",
        metadata="inside",
        checked="parity",
        # OpenVINO would keep the ONNX file's metadata a second time.
        write=_by_way_of_onnx(
            lambda source, whole, file: openvino_files.write_openvino(whole, file, source.metadata), stamped=False
        ),
        run=openvino_files.run_openvino,
        fitter=openvino_files.fit_openvino,
        next_step="benchmark_app -m FILE",
    ),
    "executorch": Target(
        file="model.pte",
        runtime="ExecuTorch",
        metadata="inside",
        checked="parity",
        write=lambda source, file: executorch_files.write_executorch(
            source.graphs.whole, source.graphs.example, file, source.metadata
        ),
        run=executorch_files.run_executorch,
        next_step='python -c "from executorch.runtime import Runtime; '
        "print(Runtime.get().load_program('FILE').method_names)\"",
        planned=True,
    ),
    "litert": Target(
        file="model.tflite",
        runtime="LiteRT",
        metadata="inside",
        checked="parity",
        write=_litert,
        run=litert_files.run_litert,
        next_step='python -c "from ai_edge_litert.interpreter import Interpreter; '
        "print(Interpreter('FILE').get_signature_list())\"",
        planned=True,
    ),
    "web": Target(
        file="web/index.html",
        runtime="onnxruntime-web in a browser",
        metadata="web/model.json",
        checked="parity (the graph in onnxruntime); a test runs the page in Chromium",
        write=_by_way_of_onnx(
            lambda source, whole, file: web.write_web(
                whole,
                file,
                web.web_document(source.manifest, source.metadata["options"]),
                source.pictures,
                source.weights,
            )
        ),
        run=web.run_web,
        next_step="python -m http.server --directory FOLDER/web 8000",
        resizes=True,
    ),
}


def target_named(name: str) -> Target:
    """Return the target of that name; raises InputError, which suggests the nearest name, for an unknown one."""
    if name not in TARGETS:
        raise InputError(f"no target {name!r}{nearest(name, TARGETS)}; --to takes {', '.join(TARGETS)}")
    return TARGETS[name]

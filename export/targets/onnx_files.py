"""Targets in ONNX and in onnxruntime's own format, in full or half precision. The head is always float32."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.parity import Runtime
from protoserve.errors import InputError
from protoserve.graph_signature import INPUT, OUTPUT_NAMES, SEARCH_OUTPUT_NAMES

# The key under which torch's exporter notes the module that a node came from.
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
# The modules that may be less precise. Later ones choose between prototypes that are often nearly equal.
_BACKBONES: Final = ("network.backbone", "network.encoder")


def run_onnx(file: Path, outputs: Sequence[str] = OUTPUT_NAMES, *, optimised: bool = True) -> Runtime:
    """Open an ONNX file, or one in onnxruntime's own format, in onnxruntime on the CPU.

    Without `optimised`, onnxruntime runs the graph as it stands, node by node.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, session.run(list(outputs), {INPUT: pictures}), strict=True))

    return run


def run_unoptimised(file: Path) -> Runtime:
    """Open an ONNX file in onnxruntime on the CPU, without graph optimisation."""
    return run_onnx(file, optimised=False)


def run_routed(file: Path) -> Runtime:
    """Open a routed graph's ONNX file in onnxruntime on the CPU."""
    return run_onnx(file, SEARCH_OUTPUT_NAMES)


def copy(source: Path, file: Path) -> None:
    """Copy the ONNX file, unless `file` is the source itself."""
    if source != file:
        shutil.copyfile(source, file)


def write_half(source: Path, file: Path) -> None:
    """Write the ONNX file `source` with its backbone in float16.

    Distances and similarities stay float32: near a prototype a distance is about 1e-4, where float16 is too coarse.
    Raises InputError if no node came from the backbone.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    backbone = set(backbone_nodes(model))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    inside = {name for node in model.graph.node if node.name in backbone for name in node.output}
    added: dict[str, Any] = {}  # new tensors and casts by the name of their output
    nodes = []

    def cast(name: str, kind: int, suffix: str) -> str:
        output = f"{name}.{suffix}"
        if output not in added:
            added[output] = helper.make_node("Cast", [name], [output], name=f"cast_{output}", to=kind)
            nodes.append(added[output])
        return output

    def half(name: str) -> str:
        if name not in stored:
            return name if name in inside or not name else cast(name, TensorProto.FLOAT16, "half")
        if stored[name].data_type != TensorProto.FLOAT:
            return name
        output = f"{name}.half"
        if output not in added:
            array = numpy_helper.to_array(stored[name]).astype(np.float16)
            added[output] = numpy_helper.from_array(array, output)
            model.graph.initializer.append(added[output])
        return output

    for node in model.graph.node:
        if node.name in backbone:
            node.input[:] = [half(name) for name in node.input]
        else:
            node.input[:] = [cast(name, TensorProto.FLOAT, "full") if name in inside else name for name in node.input]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    for field, content in (("node", nodes), ("initializer", tensors), ("value_info", [])):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(content)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(file))


def backbone_nodes(model: Any) -> list[str]:
    """Return the names of the nodes of an `onnx.ModelProto` that came from the backbone, in the graph's order.

    Raises InputError if there is none.
    """
    names = []
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
        if any(f"'{part}'" in scopes for part in _BACKBONES):
            names.append(node.name)
    if not names:
        raise InputError("the ONNX graph marks no node as part of the backbone; export the run again")
    return names


@contextmanager
def silent() -> Iterator[None]:
    """Silence the converters, which write to the console and to their loggers; the parity gate judges the file."""
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_ort(source: Path, file: Path) -> None:
    """Write the ONNX file `source` in onnxruntime's own format, which its minimal builds read.

    A companion file with the suffix `.ort.config` lists the operators and types that such a build needs
    (`--include_ops_by_config … --enable_reduced_operator_type_support`). Optimisations for this machine's processor are
    not applied: a file that has them answers wrongly, without an error, where vectors have another width.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    with TemporaryDirectory() as folder, silent(), warnings.catch_warnings():
        # The converter does not close its files.
        warnings.simplefilter("ignore", ResourceWarning)
        drafts = Path(folder)
        shutil.copyfile(source, drafts / "model.onnx")
        convert_onnx_models_to_ort(
            drafts, drafts / "out", [OptimizationStyle.Fixed], target_platform="arm", enable_type_reduction=True
        )
        shutil.copyfile(drafts / "out" / "model.ort", file)
        (config,) = (drafts / "out").glob("*.config")
        shutil.copyfile(config, file.with_suffix(".ort.config"))

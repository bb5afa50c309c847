"""The source of every target: the graph with the options for its host, in PyTorch and as ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.graph import ExplainedGraph, write_onnx
from export.host_manifest import host_manifest, named_manifest
from export.resizing import FITTED, Fit, FittedGraph
from protoserve.bundle.manifest import Manifest
from protoserve.errors import InputError
from protoserve.graph_signature import INPUT
from protoserve.images.geometry import InputRule
from protoserve.taxonomy import Taxonomy

LARGEST_SIDE = 20_000


@dataclass(frozen=True)
class EdgeOptions:
    """The inputs that a graph takes on a host other than the service.

    `batch` is the only batch size that it takes, None for any. With `resize`, it takes one picture of any size at a
    time and resizes it.
    """

    batch: int | None = None
    resize: bool = False

    @property
    def batches(self) -> int | None:
        """The only batch size that the graph takes, or None for any."""
        return 1 if self.resize else self.batch


@dataclass(frozen=True)
class Graphs:
    """The graph with one set of options, in the forms that targets start from.

    - `whole`: the graph in PyTorch, in evaluation mode;
    - `example`: an input of it, uint8 [N, H, W, 3];
    - `dynamic`: maps each of its dynamic axes to the `torch.export.Dim`;
    - `explained`: the graph without its resizing part;
    - `fitted`: an input of that, uint8 [N, H, W, 3];
    - `onnx`: the ONNX file of `explained`;
    - `prefix`: the ONNX file of the resizing part, or None without one.
    """

    options: EdgeOptions
    explained: ExplainedGraph
    fitted: Tensor
    whole: nn.Module
    example: Tensor
    dynamic: dict[int, Any]
    onnx: Path
    prefix: Path | None


@dataclass(frozen=True)
class Source:
    """The inputs of one target's writer.

    `metadata` go into the file. `manifest` is the whole manifest, with the version that files state. `calibration`
    uint8 [n, H, W, 3] are training pictures at model size, for a target that needs them. `pictures` is the folder of
    the prototypes' pictures, and `weights` float32 are those of the last layers (see `export.bundling.head_weights`).
    `converters` is the folder of converters' environments. The writer calls `report` before a long step.
    """

    graphs: Graphs
    metadata: dict[str, str]
    manifest: Manifest
    calibration: NDArray[np.uint8] | None
    pictures: Path
    weights: NDArray[np.float32]
    converters: Path
    report: Callable[[str], None]


def write_graphs(
    graph: ExplainedGraph, rule: InputRule, samples: NDArray[np.uint8], options: EdgeOptions, folder: Path
) -> Graphs:
    """Export the graph with these options; the ONNX files go into `folder`, which must exist.

    `samples` uint8 [n, H, W, 3] are pictures at model size.
    """
    batch = options.batches
    plain = folder / "plain.onnx"
    example = torch.from_numpy(samples[np.arange(batch or 2) % len(samples)])
    dynamic: dict[int, Any] = {} if batch else {0: torch.export.Dim("batch", min=1)}
    write_onnx(graph, example, plain, {}, dynamic=dynamic)
    if not options.resize:
        return Graphs(options, graph, example, graph, example, dynamic, plain, None)
    fitted = example
    prefix = folder / "fit.onnx"
    # The example differs from the model's size, so that the exporter can't confuse the two.
    example = torch.zeros((1, rule.height + 7, rule.width + 5, 3), dtype=torch.uint8)
    dynamic = {axis: torch.export.Dim(name, min=2, max=LARGEST_SIDE) for axis, name in ((1, "height"), (2, "width"))}
    write_onnx(Fit(rule).eval(), example, prefix, {}, dynamic=dynamic, outputs=[FITTED])
    return Graphs(options, graph, fitted, FittedGraph(graph, rule).eval(), example, dynamic, plain, prefix)


def finish_onnx(source: Source, file: Path) -> None:
    """Add the source's resizing part and its metadata to an ONNX file that was made from its `onnx`, in place."""
    import onnx

    model = onnx.load(str(file))
    if source.graphs.prefix is not None:
        prefix = onnx.load(str(source.graphs.prefix))
        prefix = onnx.compose.add_prefix(prefix, "fit/", rename_inputs=False, rename_outputs=False)
        model = onnx.compose.merge_models(prefix, model, [(FITTED, INPUT)])
    onnx.helper.set_model_props(model, source.metadata)
    lower_version(model)
    onnx.save_model(model, str(file))


def lower_version(model: Any) -> None:
    """Give an `onnx.ModelProto` the lowest version of the format that holds it, so that older runtimes read it.

    Exporter and quantiser write their own newest version. Notes on nodes, such as the module that one came from, need
    version 10, and no runtime reads them; they are removed.
    """
    import onnx

    for part in (model.graph, *model.functions):
        part.ClearField("metadata_props")
        for entry in (*part.node, *part.value_info):
            entry.ClearField("metadata_props")
    for values in (model.graph.input, model.graph.output, model.graph.initializer):
        for value in values:
            value.ClearField("metadata_props")
    lowest = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    newest = model.ir_version
    model.ir_version = lowest
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        # A type of tensor that came with a later version.
        model.ir_version = newest


def file_metadata(
    manifest: Manifest, origin: Path, target: str, precision: str, options: EdgeOptions
) -> dict[str, str]:
    """Return the texts that a host needs to prepare pictures and to name outputs; they go into the target's file.

    `protoserve` is, in JSON, the part of the manifest that hosts need, with its version from the file `origin` (see
    `export.host_manifest`). `nodes` are the names of the taxonomy's nodes in the graph's order, one per line, for hosts
    without a JSON parser. `options` describe, in JSON, the inputs that the file takes.
    """
    inputs = {"target": target, "precision": precision, "batch": options.batches, "resize_in_graph": options.resize}
    document = host_manifest(named_manifest(manifest, origin))
    return {
        "protoserve": json.dumps(document, separators=(",", ":"), ensure_ascii=False),
        "nodes": "\n".join(Taxonomy.from_dict(manifest.taxonomy).names),
        "options": json.dumps(inputs),
    }


def parse_size(text: str) -> tuple[int, int]:
    """Parse a height and width from `160` or `160x224`; raises InputError for anything else.

    >>> parse_size("160x224")
    (160, 224)
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 16 <= int(part) <= 4096 for part in parts):
        raise InputError(
            f"--image-size {text}: give a size from 16 to 4096, such as 160, or height and width, such as 160x224"
        )
    return int(parts[0]), int(parts[-1])

"""What targets are made from: the graph with the options of hosts other than the service, in PyTorch and as ONNX."""

from __future__ import annotations

import hashlib
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
from export.resizing import FITTED, Fit, FittedGraph
from protoserve.bundle.manifest import Manifest
from protoserve.errors import InputError
from protoserve.graph_signature import INPUT
from protoserve.images.geometry import InputRule
from protoserve.taxonomy import Taxonomy

LARGEST_SIDE = 20_000


@dataclass(frozen=True)
class EdgeOptions:
    """How a host other than the service is spoken to: in batches of exactly `batch` pictures (None: of any number), and
    with pictures of any size, one at a time, where the graph resizes them itself."""

    batch: int | None = None
    resize: bool = False

    @property
    def batches(self) -> int | None:
        """The size of batch that the graph takes, or None for any."""
        return 1 if self.resize else self.batch


@dataclass(frozen=True)
class Graphs:
    """The graph with some options, in the forms that targets start from.

    `whole` is all of it in PyTorch, in evaluation; `example` uint8 an input of it and `dynamic` those axes that stay
    open. `explained` is the graph without its resizing, `fitted` uint8 an input of that, and `onnx` its file; `prefix`
    is the resizing alone, where there is any.
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
    """What one target's file is made from: the `graphs`; `metadata`, which go into the file; `calibration` uint8
    [n, H, W, 3], training pictures at model size for a target that asks for some; `pictures`, the folder of the
    prototypes' pictures. `report` is told what takes long."""

    graphs: Graphs
    metadata: dict[str, str]
    calibration: NDArray[np.uint8] | None
    pictures: Path
    report: Callable[[str], None]


def write_graphs(
    graph: ExplainedGraph, rule: InputRule, samples: NDArray[np.uint8], options: EdgeOptions, folder: Path
) -> Graphs:
    """Export the graph with these options, its ONNX files into `folder`, which must be there.

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
    # An odd size of its own, so that none of the model's is taken for the picture's.
    example = torch.zeros((1, rule.height + 7, rule.width + 5, 3), dtype=torch.uint8)
    dynamic = {axis: torch.export.Dim(name, min=2, max=LARGEST_SIDE) for axis, name in ((1, "height"), (2, "width"))}
    write_onnx(Fit(rule).eval(), example, prefix, {}, dynamic=dynamic, outputs=[FITTED])
    return Graphs(options, graph, fitted, FittedGraph(graph, rule).eval(), example, dynamic, plain, prefix)


def finish_onnx(source: Source, file: Path) -> None:
    """Give an ONNX file made of a source's `onnx` its resizing and its metadata, in place."""
    import onnx

    model = onnx.load(str(file))
    if source.graphs.prefix is not None:
        prefix = onnx.load(str(source.graphs.prefix))
        prefix = onnx.compose.add_prefix(prefix, "fit/", rename_inputs=False, rename_outputs=False)
        model = onnx.compose.merge_models(prefix, model, [(FITTED, INPUT)])
    onnx.helper.set_model_props(model, source.metadata)
    onnx.save_model(model, str(file))


def file_metadata(
    manifest: Manifest, weights: Path, target: str, precision: str, options: EdgeOptions
) -> dict[str, str]:
    """What goes into a target's file, or beside it: all that a host needs to prepare pictures and to name answers.

    `protoserve` is the manifest as JSON, in it the `version` of the network in this one file: the hash of the run's
    `weights` and of the manifest. (A bundle's version is the hash of all that is in it, which no file in it can hold.)
    `nodes` are the names of the taxonomy's nodes, one a line in the order of the graph's numbers, for hosts without a
    reader for JSON; `options` say in JSON what this file takes.
    """
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(manifest.model_dump_json().encode())
    named = manifest.model_copy(update={"version": f"sha256:{digest.hexdigest()}"})
    taken = {"target": target, "precision": precision, "batch": options.batches, "resize_in_graph": options.resize}
    return {
        "protoserve": named.model_dump_json(),
        "nodes": "\n".join(Taxonomy.from_dict(manifest.taxonomy).names),
        "options": json.dumps(taken),
    }


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from `160` or `160x224`; raises InputError for anything else.

    >>> parse_size("160x224")
    (160, 224)
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 16 <= int(part) <= 4096 for part in parts):
        raise InputError(f"--image-size {text}: give a size from 16 to 4096, such as 160, or height and width, 160x224")
    return int(parts[0]), int(parts[-1])

"""The target `triton`: a model repository for NVIDIA's Triton Inference Server around the graph.

    triton/protoserve/1/model.onnx     the graph
    triton/protoserve/config.pbtxt     its inputs and outputs, and batching
    triton/protoserve/labels.txt       the nodes' names, for Triton's classification extension
    triton/protoserve/manifest.json    the manifest, for the host that prepares pictures

Point `--model-repository` at the folder `triton`. The configuration states no name, so the model has that of its
folder, which may be renamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from protoserve.graph_signature import INPUT

FILE: Final = "triton/protoserve/1/model.onnx"
CONFIG, LABELS, MANIFEST = "config.pbtxt", "labels.txt", "manifest.json"
# The output whose values are the nodes' scores, in their order.
_SCORES: Final = "log_probability"
# The most pictures that Triton joins in a batch; onnxruntime takes any number.
_BATCH: Final = 64
_TYPES: Final = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64"}


def write_beside(file: Path, metadata: Mapping[str, str]) -> None:
    """Write what stands beside a repository's graph `file`: its configuration, the labels and the manifest."""
    import onnx

    folder = file.parents[1]
    model = onnx.load(str(file), load_external_data=False)
    (folder / CONFIG).write_text("\n".join(_configuration(model)) + "\n", encoding="utf-8")
    (folder / LABELS).write_text(metadata["nodes"] + "\n", encoding="utf-8")
    (folder / MANIFEST).write_text(metadata["protoserve"], encoding="utf-8")


def repository_files(file: Path) -> list[Path]:
    """List a repository's files, given its graph `file`."""
    return sorted(part for part in file.parents[1].rglob("*") if part.is_file())


def _configuration(model: Any) -> Iterator[str]:
    """The lines of a configuration in protobuf's text format, message ModelConfig."""
    [picture] = [value for value in model.graph.input if value.name == INPUT]
    # Only a graph that takes any batch can be batched; its first dimension is not stated, then.
    batched = not picture.type.tensor_type.shape.dim[0].HasField("dim_value")
    yield 'backend: "onnxruntime"'
    yield f"max_batch_size: {_BATCH if batched else 0}"
    if batched:
        yield "dynamic_batching { }"
    for kind, values in (("input", [picture]), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
            yield f"{kind} {{"
            yield f'  name: "{value.name}"'
            yield f"  data_type: {_TYPES[tensor.elem_type]}"
            yield f"  dims: [ {', '.join(map(str, sizes[1:] if batched else sizes))} ]"
            if value.name == _SCORES:
                yield f'  label_filename: "{LABELS}"'
            yield "}"

"""A Triton model repository: its configuration by Triton's own schema, and the graph that it describes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from export.targets.listing import target_parts
from export.targets.triton import CONFIG, FILE, LABELS, MANIFEST, write_beside
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.graph_signature import OUTPUT_NAMES

TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8"}


@pytest.fixture(scope="module")
def edge(edge_bundle: Path) -> Bundle:
    return read_bundle(edge_bundle)


def read_configuration(folder: Path) -> Any:
    """The configuration, read as Triton reads it."""
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="tritonclient is missing; install the extra dev"
    )
    text_format = pytest.importorskip("google.protobuf.text_format")
    return text_format.Parse((folder / CONFIG).read_text(encoding="utf-8"), schema.ModelConfig())


def check_against_graph(folder: Path, *, batched: bool) -> None:
    found = read_configuration(folder)
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    for configured, listed in ((found.input, session.get_inputs()), (found.output, session.get_outputs())):
        assert [tensor.name for tensor in configured] == [value.name for value in listed]
        for tensor, value in zip(configured, listed, strict=True):
            # Dimensions that are not fixed have names.
            shape = [size if isinstance(size, int) else -1 for size in value.shape]
            assert list(tensor.dims) == (shape[1:] if batched else shape), tensor.name
            assert (
                type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
                == TYPES[value.type]
            )
    assert found.backend == "onnxruntime"
    assert (found.max_batch_size > 0) == found.HasField("dynamic_batching") == batched


def test_the_configuration_describes_the_graph(edge: Bundle) -> None:
    check_against_graph(edge.file("triton").parents[1], batched=True)


def test_a_graph_of_a_fixed_batch_is_not_batched(edge: Bundle, tmp_path: Path) -> None:
    import onnx

    folder = tmp_path / "repository"
    (folder / "1").mkdir(parents=True)
    model = onnx.load(edge.file("onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, folder / "1" / "model.onnx")
    write_beside(folder / "1" / "model.onnx", {"nodes": "a\nb", "protoserve": "{}"})
    check_against_graph(folder, batched=False)


def test_labels_name_the_scores_and_the_manifest_stands_beside(edge: Bundle) -> None:
    folder = edge.file("triton").parents[1]
    assert (folder / LABELS).read_text(encoding="utf-8").splitlines() == list(edge.taxonomy.names)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["input"] == edge.input.model_dump()
    found = read_configuration(folder)
    assert {tensor.name: tensor.label_filename for tensor in found.output if tensor.label_filename} == {
        "log_probability": LABELS
    }
    # The graph is the fused one, whose outputs hold the evidence.
    assert tuple(tensor.name for tensor in found.output) == OUTPUT_NAMES
    assert not re.search(r"^name:", (folder / CONFIG).read_text(encoding="utf-8"), re.MULTILINE)


def test_its_files_are_those_of_the_repository(edge: Bundle) -> None:
    parts = {part.relative_to(edge.directory).as_posix() for part in target_parts(edge.file("triton"))}
    assert parts == {FILE, *(f"triton/protoserve/{name}" for name in (CONFIG, LABELS, MANIFEST))}

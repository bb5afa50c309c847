"""Sizes on the command line, the options of hosts other than the service, and the texts in their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.graph import OPSET
from export.host_manifest import host_manifest, named_manifest
from export.sources import EdgeOptions, file_metadata, lower_version, parse_size
from protoserve.bundle.folder import read_bundle
from protoserve.errors import InputError


@pytest.mark.parametrize(("text", "size"), [("160", (160, 160)), ("160x224", (160, 224)), ("16X4096", (16, 4096))])
def test_a_size_is_one_number_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "15", "4097", "160x", "160x224x3", "-160", "1.5"])
def test_another_text_is_not_a_size(text: str) -> None:
    with pytest.raises(InputError, match="--image-size"):
        parse_size(text)


def test_a_graph_that_resizes_takes_one_picture_at_a_time() -> None:
    assert EdgeOptions().batches is None
    assert EdgeOptions(batch=8).batches == 8
    assert EdgeOptions(batch=8, resize=True).batches == 1


def test_the_texts_in_a_file_describe_the_bundle_and_the_inputs(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    texts = file_metadata(manifest, weights, "onnx-edge", "float32", EdgeOptions(batch=2))
    assert texts["nodes"].splitlines() == list(read_bundle(tiny_bundle).taxonomy.names)
    inputs = {"target": "onnx-edge", "precision": "float32", "batch": 2, "resize_in_graph": False}
    assert json.loads(texts["options"]) == inputs
    stored = json.loads(texts["protoserve"])
    assert stored == host_manifest(named_manifest(manifest, weights))


def test_other_weights_or_another_manifest_are_another_version(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    (tmp_path / "one.pt").write_bytes(b"one")
    (tmp_path / "two.pt").write_bytes(b"two")
    renamed = manifest.model_copy(update={"name": "another"})
    versions = [
        json.loads(file_metadata(described, tmp_path / file, "onnx", "float32", EdgeOptions())["protoserve"])["version"]
        for described, file in ((manifest, "one.pt"), (manifest, "two.pt"), (renamed, "one.pt"), (manifest, "one.pt"))
    ]
    assert len(set(versions)) == 3 and versions[0] == versions[3]


def conv_free_model(ir_version: int, opset: int, *, four_bits: bool = False) -> onnx.ModelProto:
    """A model that adds 1 to its input, with notes on its node; `four_bits` adds a tensor that needs version 10."""
    node = helper.make_node("Add", ["x", "one"], ["y"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['network.backbone']")
    tensors = [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])]
    if four_bits:
        tensors.append(helper.make_tensor("four", TensorProto.INT4, [2], [1, 2]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(("opset", "lowest"), [(18, 8), (20, 9)])
def test_a_file_has_the_lowest_version_that_holds_it(opset: int, lowest: int, tmp_path: Path) -> None:
    model = conv_free_model(10, opset)
    lower_version(model)
    assert model.ir_version == lowest and not model.graph.node[0].metadata_props
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([2.0], dtype=np.float32)})[0] == 3.0


def test_a_tensor_of_a_later_version_keeps_that_version() -> None:
    model = conv_free_model(10, 21, four_bits=True)
    lower_version(model)
    assert model.ir_version == 10


def test_every_onnx_file_of_a_bundle_is_for_older_runtimes(edge_bundle: Path) -> None:
    """onnxruntime 1.15 of 2023 reads version 8 and operator set 18."""
    files = sorted(edge_bundle.glob("*.onnx"))
    assert len(files) == 5
    for file in files:
        model = onnx.load(str(file))
        sets = {entry.domain: entry.version for entry in model.opset_import}
        assert (model.ir_version, sets[""]) == (8, OPSET), file.name
        assert not any(node.metadata_props for node in model.graph.node), file.name

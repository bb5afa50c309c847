"""The ONNX files: half precision up to the head, and onnxruntime's own format."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.graph import ExplainedGraph, write_onnx
from export.targets.onnx_files import backbone_nodes, copy, run_onnx
from protoserve.bundle.folder import Bundle
from protoserve.errors import InputError
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork


def test_half_precision_stops_at_the_head(edge: Bundle) -> None:
    model = onnx.load(edge.file("onnx-fp16"))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    half = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    assert half and all("backbone" in name or "cast" in name for name in half)
    assert edge.file("onnx-fp16").stat().st_size < 0.6 * edge.file("onnx").stat().st_size


def test_the_reduced_build_is_told_its_operators(edge: Bundle) -> None:
    config = edge.file("ort").with_suffix(".ort.config").read_text()
    assert "Conv" in config and "TopK" in config


def test_the_service_s_own_graph_takes_any_batch_all_the_same(small: Bundle) -> None:
    pictures = np.zeros((3, 32, 48, 3), dtype=np.uint8)
    assert run_onnx(small.file("onnx"))(pictures)["path"].shape[0] == 3


def test_a_graph_without_a_backbone_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    """The exporter marks the nodes; the files of a bundle no longer hold these notes."""
    network, _, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    example = torch.from_numpy(np.load(tiny_run / "samples.npy")[:2])
    write_onnx(ExplainedGraph(network, 2, example).eval(), example, tmp_path / "plain.onnx", {})
    model = onnx.load(str(tmp_path / "plain.onnx"))
    assert 0 < len(backbone_nodes(model)) < len(model.graph.node)
    for node in model.graph.node:
        node.ClearField("metadata_props")
    with pytest.raises(InputError, match="marks no node as part of the backbone"):
        backbone_nodes(model)


def test_a_file_is_copied_unless_it_is_its_own_source(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"graph")
    copy(source, source)
    copy(source, tmp_path / "copy.onnx")
    assert source.read_bytes() == (tmp_path / "copy.onnx").read_bytes() == b"graph"

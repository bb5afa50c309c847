"""The exported files, in their own runtimes, against double precision."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.targets.onnx_files import run_onnx
from export.targets.torch_files import run_torchscript
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork

Exported: TypeAlias = tuple[Bundle, Mapping[str, NDArray[Any]]]
RUNTIMES = {"onnx": run_onnx, "torchscript": run_torchscript}


@pytest.fixture(scope="module", params=RUNTIMES)
def exported(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_run: Path) -> Exported:
    """(bundle, what its graph answers for the source image of every prototype)"""
    bundle = read_bundle(tiny_bundle)
    runtime = RUNTIMES[request.param](bundle.file(request.param))
    return bundle, runtime(np.load(tiny_run / "samples.npy"))


def test_every_prototype_is_at_its_greatest_similarity_in_its_own_source_cell(exported: Exported) -> None:
    bundle, outputs = exported
    epsilon = bundle.manifest.graph.epsilon
    for record in bundle.manifest.prototypes:
        # Picture number i of the samples is the source image of prototype i.
        similarity = float(outputs["similarity"][record.id, record.id])
        assert similarity == pytest.approx(np.log(1 + 1 / epsilon), abs=1e-3)
        distance = 1 / np.expm1(similarity) - epsilon
        assert abs(distance) < 1e-5
        row, column = record.source_cell
        assert outputs["cell"][record.id, record.id] == row * bundle.manifest.graph.columns + column


def test_similarities_agree_with_double_precision_everywhere(exported: Exported, tiny_run: Path) -> None:
    _, outputs = exported
    network, description, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    network = network.double()
    pictures = torch.from_numpy(np.load(tiny_run / "samples.npy")).double()
    with torch.inference_mode():
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
        deviation = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
        assert network.reduction is not None
        maps = network.backbone(((pictures / 255 - mean) / deviation).permute(0, 3, 1, 2))
        latent = network.add_on(network.reduction(maps)).flatten(2).numpy()
    prototypes = network.head.prototypes.detach().numpy()
    distance = ((latent[:, None] - prototypes[None, :, :, None]) ** 2).sum(2)
    expected = np.log(1 + 1 / (distance.min(2) + description.epsilon))
    np.testing.assert_allclose(outputs["similarity"], expected, atol=1e-3)


def test_contributions_of_all_prototypes_sum_to_the_logit(exported: Exported, tiny_run: Path) -> None:
    bundle, outputs = exported
    network, _, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    head, taxonomy = network.head, bundle.taxonomy
    weight = head.effective_weight().detach().double().numpy()
    for group_number, group in enumerate(taxonomy.groups):
        own = [record.id for record in bundle.manifest.prototypes if taxonomy.index[record.child] in group.children]
        for place, child in enumerate(group.children):
            contributions = outputs["similarity"][:, own].astype(np.float64) * weight[group_number, place, : len(own)]
            np.testing.assert_allclose(outputs["logit"][:, child], contributions.sum(1), atol=1e-4)


def test_levels_sum_to_one(exported: Exported) -> None:
    bundle, outputs = exported
    taxonomy = bundle.taxonomy
    for level in range(taxonomy.depth):
        nodes = np.unique(taxonomy.level_of_leaf[:, level])
        np.testing.assert_allclose(np.exp(outputs["log_probability"][:, nodes]).sum(1), 1.0, atol=1e-5)


def test_the_onnx_file_stands_alone_and_returns_no_full_map(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    model = onnx.load(bundle.file("onnx"), load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    stored = json.loads({entry.key: entry.value for entry in model.metadata_props}["protoserve"])
    assert stored["taxonomy"] == bundle.manifest.taxonomy
    assert len(stored["prototypes"]) == bundle.manifest.graph.prototypes
    [image] = model.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    graph = bundle.manifest.graph
    session = onnxruntime.InferenceSession(bundle.file("onnx"), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"image": np.zeros((1, 64, 96, 3), np.uint8)})
    names = [output.name for output in session.get_outputs()]
    maps = dict(zip(names, outputs, strict=True)).pop("evidence_map")
    assert maps.shape == (1, bundle.taxonomy.depth, graph.top_k, graph.rows, graph.columns)
    others = [output for output, name in zip(outputs, names, strict=True) if name != "evidence_map"]
    assert max(output.size for output in others) < graph.rows * graph.columns


def test_edge_runtimes_lack_these_operators(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "model.onnx")
    used = {node.op_type for node in model.graph.node}
    assert not used & {"ReduceMin", "ArgMin", "Loop", "Scan", "If", "CDist", "NonZero"}

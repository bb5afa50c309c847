"""The exported files, in their own runtimes, against double precision."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.bundling import export_bundle
from export.targets.onnx_files import run_onnx
from export.targets.torch_files import run_torchscript
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import open_run
from tests.bundles import TEMPERATURE, BundleFactory, RunFactory, RunOptions
from tests.locality import Sent, changes_at_evidence

Exported: TypeAlias = tuple[Bundle, Mapping[str, NDArray[Any]]]
RUNTIMES = {"onnx": run_onnx, "torchscript": run_torchscript}
COSINE: RunOptions = {"similarity": "cosine"}
# Directions, smoothed cells and a hidden layer.
SPHERE: RunOptions = {"latent": "sphere", "smoothing": 3, "hidden": 20, "zero": 2.0}


def answers(directory: Path, target: str, pictures: NDArray[np.uint8]) -> Exported:
    """(bundle, the outputs of its graph for `pictures`)"""
    bundle = read_bundle(directory)
    return bundle, RUNTIMES[target](bundle.file(target))(pictures)


@pytest.fixture(scope="module", params=RUNTIMES)
def exported(request: pytest.FixtureRequest, tiny_bundle: Path, samples: NDArray[np.uint8]) -> Exported:
    """(bundle, the outputs of its graph for the source image of every prototype)"""
    return answers(tiny_bundle, request.param, samples)


@pytest.fixture(scope="module", params=RUNTIMES)
def flat(request: pytest.FixtureRequest, flat_bundle: Path, samples: NDArray[np.uint8]) -> Exported:
    """The same of a ProtoPNet: one softmax over all leaves."""
    return answers(flat_bundle, request.param, samples)


@pytest.fixture(scope="module", params=RUNTIMES)
def cosine(request: pytest.FixtureRequest, bundle: BundleFactory, run: RunFactory) -> Exported:
    """The same of a network that compares by the cosine."""
    return answers(bundle("cosine", tuple(RUNTIMES), **COSINE), request.param, np.load(run(**COSINE) / "samples.npy"))


@pytest.fixture(scope="module", params=RUNTIMES)
def sphere(request: pytest.FixtureRequest, bundle: BundleFactory, run: RunFactory) -> Exported:
    """The same of a network that compares directions of smoothed cells behind a hidden layer."""
    return answers(bundle("sphere", tuple(RUNTIMES), **SPHERE), request.param, np.load(run(**SPHERE) / "samples.npy"))


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


def test_centred_weights_times_similarities_sum_to_the_logit(exported: Exported, tiny_run: Path) -> None:
    bundle, outputs = exported
    network, _, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    head, taxonomy = network.head, bundle.taxonomy
    weight = head.effective_weight().detach().double().numpy()
    for group_number, group in enumerate(taxonomy.groups):
        own = [record.id for record in bundle.manifest.prototypes if taxonomy.index[record.child] in group.children]
        for place, child in enumerate(group.children):
            table = weight[group_number, : len(group.children), : len(own)]
            products = outputs["similarity"][:, own].astype(np.float64) * (table[place] - table.mean(0))
            np.testing.assert_allclose(outputs["logit"][:, child], products.sum(1), atol=1e-4)


def test_levels_sum_to_one(exported: Exported) -> None:
    bundle, outputs = exported
    taxonomy = bundle.taxonomy
    for level in range(taxonomy.depth):
        nodes = np.unique(taxonomy.level_of_leaf[:, level])
        np.testing.assert_allclose(np.exp(outputs["log_probability"][:, nodes]).sum(1), 1.0, atol=1e-5)


def test_each_parents_logits_are_divided_by_its_temperature(
    calibrated_bundle: Path, samples: NDArray[np.uint8]
) -> None:
    bundle, outputs = answers(calibrated_bundle, "onnx", samples[:6])
    taxonomy = bundle.taxonomy
    logits = outputs["logit"].astype(np.float64)
    conditional = np.zeros(logits.shape)
    for temperature, group in zip(TEMPERATURE.values(), taxonomy.groups, strict=True):
        divided = logits[:, list(group.children)] / temperature
        conditional[:, list(group.children)] = divided - np.log(np.exp(divided).sum(axis=1, keepdims=True))
    for node in range(len(taxonomy.nodes)):
        above = [at for at in taxonomy.path_at_level[node] if at >= 0]
        np.testing.assert_allclose(outputs["log_probability"][:, node], conditional[:, above].sum(axis=1), atol=1e-4)


def test_a_flat_graphs_leaves_sum_to_one_and_inner_nodes_are_sums_over_their_leaves(flat: Exported) -> None:
    bundle, outputs = flat
    taxonomy = bundle.taxonomy
    probability = np.exp(outputs["log_probability"].astype(np.float64))
    leaves = list(taxonomy.leaves)
    np.testing.assert_allclose(probability[:, leaves].sum(1), 1.0, atol=1e-5)
    for node, name in enumerate(taxonomy.names):
        below = [leaf for leaf in leaves if f"{taxonomy.names[leaf]}/".startswith(f"{name}/")]
        np.testing.assert_allclose(probability[:, node], probability[:, below].sum(1), atol=1e-5)


def test_a_flat_graph_has_logits_and_evidence_for_leaves_alone(flat: Exported) -> None:
    bundle, outputs = flat
    taxonomy = bundle.taxonomy
    inner = [node for node in range(len(taxonomy.nodes)) if node not in taxonomy.leaves]
    assert not outputs["logit"][:, inner].any()
    is_leaf = np.isin(outputs["path"], taxonomy.leaves)
    assert is_leaf.any(1).all()
    assert (outputs["evidence_prototype"][is_leaf] >= 0).all()
    assert (outputs["evidence_prototype"][~is_leaf] == -1).all()
    assert not outputs["evidence_map"][~is_leaf].any()


def test_cosines_are_the_greatest_in_double_precision(cosine: Exported, run: RunFactory) -> None:
    bundle, outputs = cosine
    folder = run(**COSINE)
    network, _, _ = load_network(folder / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    with torch.inference_mode():
        # Before the cells are brought to unit length.
        latent = network.add_on(network.features(torch.from_numpy(np.load(folder / "samples.npy"))))
    cells = latent.double().flatten(2).numpy()
    prototypes = network.head.prototypes.detach().double().numpy()
    expected = np.einsum("pd,ndc->npc", prototypes, cells) / np.linalg.norm(cells, axis=1)[:, None]
    expected /= np.linalg.norm(prototypes, axis=1)[None, :, None]
    np.testing.assert_allclose(outputs["similarity"], expected.max(2), atol=1e-5)
    for record in bundle.manifest.prototypes:
        assert outputs["similarity"][record.id, record.id] == pytest.approx(1.0, abs=1e-6)
        row, column = record.source_cell
        assert outputs["cell"][record.id, record.id] == row * bundle.manifest.graph.columns + column


def test_a_source_images_direction_has_the_greatest_similarity(sphere: Exported) -> None:
    bundle, outputs = sphere
    graph = bundle.manifest.graph
    # log(1 + 1/(d + ε)) at d = 0, less that at d = `zero`, which is 2.
    greatest = math.log1p(1 / graph.epsilon) - math.log1p(1 / (2 + graph.epsilon))
    for record in bundle.manifest.prototypes:
        assert outputs["similarity"][record.id, record.id] == pytest.approx(greatest, abs=1e-3)
        row, column = record.source_cell
        assert outputs["cell"][record.id, record.id] == row * graph.columns + column


def test_the_onnx_file_stands_alone_and_returns_no_full_map(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    model = onnx.load(bundle.file("onnx"), load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    stored = json.loads({entry.key: entry.value for entry in model.metadata_props}["protoserve"])
    assert stored["taxonomy"] == bundle.manifest.taxonomy
    assert len(stored["prototypes"]["source_image"]) == bundle.manifest.graph.prototypes
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


# ---- tiles ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sent() -> list[Sent]:
    """Pictures of noise, of several shapes, and the EXIF orientation in which each is stored."""
    generator = np.random.default_rng(0)
    sizes = [(150, 200, 1), (47, 61, 6), (333, 120, 3), (64, 96, 5), (210, 47, 8)]
    return [(generator.integers(0, 256, (height, width, 3), dtype=np.uint8), turn) for height, width, turn in sizes]


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("step", [16, 32])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_with_tiles_no_pixel_outside_the_box_changes_the_similarity_there(
    bundle: BundleFactory, sent: list[Sent], target: str, step: int, resize: str
) -> None:
    tiled = read_bundle(bundle("tiled", tuple(RUNTIMES), tile=32, tile_step=step))
    run = RUNTIMES[target](tiled.file(target))
    rule = InputRule.model_validate({"height": 64, "width": 96, "resize": resize})
    changes = list(changes_at_evidence(tiled, run, rule, sent))
    assert len(changes) == 9 * len(sent)
    # The tile stays as similar, so the most similar tile can only be another, more similar one.
    assert max(max(change) for change in changes) <= 1e-5
    # Not because nothing matters: pixels inside do change it.
    inside = changes_at_evidence(tiled, run, rule, sent, inside=True)
    assert np.mean([change > 1e-3 for change, _ in inside]) > 0.8


def test_without_tiles_pixels_outside_the_box_change_the_similarity(tiny_bundle: Path, sent: list[Sent]) -> None:
    whole = read_bundle(tiny_bundle)
    changes = changes_at_evidence(whole, run_onnx(whole.file("onnx")), whole.input, sent)
    assert np.mean([change > 1e-3 for change, _ in changes]) > 0.8


def test_the_manifest_tells_the_tiles(bundle: BundleFactory) -> None:
    graph = read_bundle(bundle("tiled", tuple(RUNTIMES), tile=32, tile_step=16)).manifest.graph
    assert (graph.rows, graph.columns, graph.tile, graph.tile_step) == (3, 5, 32, 16)
    apart = read_bundle(bundle("tiled", tuple(RUNTIMES), tile=32, tile_step=32)).manifest.graph
    assert (apart.rows, apart.columns, apart.tile, apart.tile_step) == (2, 3, 32, 32)


def test_an_exported_size_must_suit_the_tiles(run: RunFactory, tmp_path: Path) -> None:
    tiled = open_run(run(tile=32, tile_step=16))
    graph = export_bundle(tiled, tmp_path / "larger", size=(80, 112)).manifest.graph
    assert (graph.rows, graph.columns, graph.tile, graph.tile_step) == (4, 6, 32, 16)
    with pytest.raises(InputError, match=r"do not cover pictures of 100 × 96 pixels.*pictures of 96 × 96 pixels"):
        export_bundle(tiled, tmp_path / "odd", size=(100, 96))

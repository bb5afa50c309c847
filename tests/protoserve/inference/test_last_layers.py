"""Centred evidence on the host against the exported graph's own, and bundles whose graphs are older than it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.bundling import export_bundle
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import BundleError
from protoserve.graph_signature import OUTPUT_NAMES
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Engine, Outputs
from protoserve.inference.last_layers import GroupLayer, HostEvidence, LastLayers, MemberLayers, read_last_layers
from protoserve.networks.model_file import load_network, save_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.novelty import NoveltyTable
from protoserve.run.folder import open_run
from protoserve.schema import Prediction
from tests.bundles import older_bundle
from training.loop.answers import answer_features, novelty_table

# What the host computes; the maps are compared apart, because the host draws none.
WHY = tuple(name for name in OUTPUT_NAMES if name.startswith(("evidence_", "against_")) and name != "evidence_map")


@pytest.fixture(scope="module", params=["tiny_bundle", "flat_bundle"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return read_bundle(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return read_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def images(tiny_run: Path) -> NDArray[np.uint8]:
    """Noise, and source images of prototypes: uint8 [N, 64, 96, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 96, 3), dtype=np.uint8)
    return np.concatenate([noise, np.load(tiny_run / "samples.npy")[::3]])


def table_of(bundle: Bundle) -> NoveltyTable:
    children = [bundle.taxonomy.index[record.child] for record in bundle.manifest.prototypes]
    return NoveltyTable.of(bundle.taxonomy, bundle.kind, children)


def layers_of(bundle: Bundle) -> LastLayers:
    layers = read_last_layers(bundle, table_of(bundle))
    assert layers is not None
    return layers


def host_of(bundle: Bundle) -> HostEvidence:
    members = [MemberLayers(layers_of(bundle).groups)]
    return HostEvidence(bundle.taxonomy, table_of(bundle), members, bundle.top_k, bundle.grid)


def assert_same_reasons(found: Outputs, expected: Outputs) -> None:
    """The same evidence for and against; where two contributions nearly tie, their order may differ."""
    for kind in ("evidence", "against"):
        names = [name for name in WHY if name.startswith(kind)]
        orders = [np.argsort(getattr(outputs, f"{kind}_prototype"), axis=2) for outputs in (found, expected)]
        for name in names:
            one, other = (
                np.take_along_axis(getattr(outputs, name), order, axis=2)
                for outputs, order in zip((found, expected), orders, strict=True)
            )
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(
            getattr(found, f"{kind}_contribution"), getattr(expected, f"{kind}_contribution"), rtol=1e-4, atol=1e-4
        )
    np.testing.assert_allclose(found.positive_contribution, expected.positive_contribution, rtol=1e-4, atol=1e-4)


# ---- against the graph ----------------------------------------------------------------------------------------------


def test_the_host_gives_the_graphs_reasons_for_the_predicted_path(bundle: Bundle, images: NDArray[np.uint8]) -> None:
    answer = Engine(bundle, device="cpu").run(images)
    found = host_of(bundle).on_path([answer], answer.path)
    told = Outputs(**{name: found.get(name, getattr(answer, name)) for name in OUTPUT_NAMES})
    assert (answer.evidence_prototype >= 0).any() and (answer.against_prototype >= 0).any()
    assert_same_reasons(told, answer)


def test_the_host_takes_the_maps_that_the_graph_drew(tiny: Bundle, images: NDArray[np.uint8]) -> None:
    answer = Engine(tiny, device="cpu").run(images)
    found = host_of(tiny).on_path([answer], answer.path)
    for image, level, rank in zip(*np.nonzero(found["evidence_prototype"] >= 0), strict=True):
        place = np.flatnonzero(
            answer.evidence_prototype[image, level] == found["evidence_prototype"][image, level, rank]
        )
        drawn = answer.evidence_map[image, level, place[0]]
        np.testing.assert_array_equal(found["evidence_map"][image, level, rank], drawn)


def test_a_map_of_another_node_is_not_taken(tiny: Bundle, images: NDArray[np.uint8]) -> None:
    answer = Engine(tiny, device="cpu").run(images[:1])
    siblings = tiny.taxonomy.children_of(-1)
    other = answer.path.copy()
    other[0] = -1
    other[0, 0] = next(node for node in siblings if node != answer.path[0, 0])
    found = host_of(tiny).on_path([answer], other)
    assert (found["evidence_prototype"][0, 0] >= 0).any()
    assert np.isnan(found["evidence_map"]).all()
    assert (found["evidence_prototype"][0, 1:] == -1).all()


def test_the_logits_are_the_graphs(bundle: Bundle, images: NDArray[np.uint8]) -> None:
    answer = Engine(bundle, device="cpu").run(images)
    np.testing.assert_allclose(host_of(bundle).logits([answer]), answer.logit, rtol=1e-4, atol=1e-4)


def test_priors_are_the_manifests(bundle: Bundle) -> None:
    for group, layer in zip(table_of(bundle).groups, layers_of(bundle).groups, strict=True):
        expected = [bundle.manifest.prior[bundle.taxonomy.names[node]] for node in group.children]
        np.testing.assert_allclose(layer.prior, expected, rtol=1e-5, atol=1e-5)


def test_a_worked_example() -> None:
    layer = GroupLayer(np.array([0, 1]), np.array([[0.5, -1.0], [-0.5, 1.0]]), np.array([2.0, 3.0]))
    np.testing.assert_allclose(layer.prior, [0.5 * 2 - 3, -0.5 * 2 + 3])
    np.testing.assert_allclose(layer.scaled(2.0).prior, 2 * layer.prior)


# ---- reading --------------------------------------------------------------------------------------------------------


def test_weights_lose_their_mean_over_the_siblings(tiny: Bundle, tiny_run: Path) -> None:
    layers = layers_of(tiny)
    assert layers.centred and layers.common_weight is not None
    network, _, _ = load_network(tiny_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    trained = network.head.effective_weight().detach().numpy()
    for number, layer in enumerate(layers.groups):
        members = layer.weight.shape[0]
        np.testing.assert_allclose(layer.weight.sum(0), 0.0, atol=1e-6)
        slots = network.head.grouping.prototype_slot[layer.prototypes].numpy()
        own = trained[number][:members, slots]
        np.testing.assert_allclose(layers.common_weight[layer.prototypes], own.mean(0), atol=1e-6)
        np.testing.assert_allclose(layer.weight, own - own.mean(0), atol=1e-6)


def test_the_energy_of_the_centred_graph_is_that_of_the_network_as_trained(
    tiny: Bundle, tiny_run: Path, images: NDArray[np.uint8]
) -> None:
    """So thresholds that training fitted decide the same on the exported graph."""
    network, _, _ = load_network(tiny_run / "model.pt")
    table = novelty_table(network)
    with torch.inference_mode():
        features = network.features(torch.from_numpy(images))
    expected = answer_features(network, features, table).novelty["energy"]
    outputs, layers = Engine(tiny, device="cpu").run(images), layers_of(tiny)
    centred = NoveltyTable.of(tiny.taxonomy, tiny.kind, table.prototype_child.tolist(), layers.common_weight)
    arrays = outputs.log_probability, outputs.logit, outputs.similarity
    np.testing.assert_allclose(centred.scores("energy", *arrays), expected, atol=1e-3)
    assert np.abs(table.scores("energy", *arrays) - expected).max() > 0.1


def test_a_bundle_without_weights_has_no_last_layers(tiny: Bundle) -> None:
    bundle = Bundle(tiny.directory, tiny.manifest.model_copy(update={"weights": None}))
    assert read_last_layers(bundle, table_of(bundle)) is None


@pytest.mark.parametrize(
    "weights", [np.zeros(3, np.float32), np.zeros((57, 1), np.float32), np.zeros(57)], ids=["few", "shape", "dtype"]
)
def test_weights_that_do_not_fit_are_refused(tiny: Bundle, tmp_path: Path, weights: NDArray[np.floating]) -> None:
    shutil.copytree(tiny.directory, tmp_path / "bundle")
    assert tiny.manifest.weights is not None
    np.save(tmp_path / "bundle" / tiny.manifest.weights, weights)
    bundle = Bundle(tmp_path / "bundle", tiny.manifest)
    with pytest.raises(BundleError, match=r"weights\.npy: holds .* the prototypes need float32 \[\d+\]; export"):
        read_last_layers(bundle, table_of(bundle))


# ---- bundles of format 1 --------------------------------------------------------------------------------------------


def test_an_older_bundle_centred_since_answers_as_a_new_one(
    bundle: Bundle, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    expected = Engine(bundle, device="cpu").run(images)
    found = Engine(older_bundle(bundle, tmp_path / "older", usual=True), device="cpu").run(images)
    assert_same_reasons(found, expected)
    for name in ("log_probability", "logit", "path", "similarity", "cell"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, err_msg=name)


def test_an_older_bundle_whose_weights_were_centred_answers_as_a_new_one(
    tiny_run: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    network, description, sources = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    network.head.weight.data.copy_(network.head.centred_weight())
    network.head.usual.zero_()
    save_network(run / "model.pt", network, description, sources)
    new = export_bundle(open_run(run), tmp_path / "new")
    expected = Engine(new, device="cpu").run(images)
    old = older_bundle(new, tmp_path / "older")
    assert not layers_of(old).centred and layers_of(old).common_weight is None
    found = Engine(old, device="cpu").run(images)
    assert_same_reasons(found, expected)
    np.testing.assert_array_equal(found.logit, expected.logit)


def predicted(bundle: Bundle, photograph: Path) -> Prediction:
    classifier = Classifier(bundle, Engine(bundle, device="cpu"))
    return classifier.predict_fitted([classifier.fit(photograph)], top_k=3)[0]


def test_an_older_bundle_without_weights_does_not_know_its_share(
    tiny: Bundle, photograph: Path, tmp_path: Path
) -> None:
    found = predicted(older_bundle(tiny, tmp_path / "older", weights=False), photograph)
    expected = predicted(tiny, photograph)
    assert found.path == expected.path
    competing = [level for level in found.levels if level.logit is not None]
    assert competing
    for level in competing:
        assert level.evidence_share is None and level.against == [] and level.prior == 0.0
        assert level.rest is not None and level.logit is not None
        assert level.rest + sum(piece.contribution for piece in level.evidence) == pytest.approx(level.logit, abs=1e-5)


def test_the_sum_of_an_older_bundle_closes(tiny: Bundle, photograph: Path, tmp_path: Path) -> None:
    for level in predicted(older_bundle(tiny, tmp_path / "older", usual=True), photograph).levels:
        if level.logit is None:
            continue
        assert level.evidence_share is not None and level.prior is not None and level.rest is not None
        told = sum(piece.contribution for piece in (*level.evidence, *level.against))
        assert level.prior + told + level.rest == pytest.approx(level.logit, abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tiny: Bundle, tmp_path: Path, value: float) -> None:
    shutil.copytree(tiny.directory, tmp_path / "bundle")
    assert tiny.manifest.weights is not None
    file = tmp_path / "bundle" / tiny.manifest.weights
    weights = np.load(file)
    weights[1] = value
    np.save(file, weights)
    bundle = Bundle(tmp_path / "bundle", tiny.manifest)
    with pytest.raises(BundleError, match=r"weights\.npy: holds weights that are not finite numbers"):
        read_last_layers(bundle, table_of(bundle))
    file.write_bytes(b"no array")
    with pytest.raises(BundleError, match=r"weights\.npy: not an array of weights"):
        read_last_layers(bundle, table_of(bundle))

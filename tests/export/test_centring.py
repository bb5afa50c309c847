"""Usual similarities measured after training, against means by hand in double precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.centring import centre
from protoserve.bundle.ensemble import write_ensemble
from protoserve.bundle.folder import Bundle, read_bundle, write_bundle, write_manifest
from protoserve.data.dataset import Dataset, hold_out, read_split
from protoserve.errors import InputError, TaxonomyError
from protoserve.images.fitting import fit
from protoserve.inference.classifier import load
from protoserve.inference.engine import Engine
from protoserve.inference.last_layers import read_last_layers
from protoserve.networks.model_file import load_network, save_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.novelty import NoveltyTable
from protoserve.run.folder import open_run
from protoserve.run.records import Analysis
from protoserve.schema import NoveltyRecord
from protoserve.taxonomy import Taxonomy
from tests.bundles import older_bundle


@pytest.fixture
def run(learned: tuple[Path, Path], tmp_path: Path) -> Path:
    """A run as an older version wrote it: without usual similarities."""
    run = shutil.copytree(learned[0], tmp_path / "run")
    network, description, sources = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    network.head.usual.zero_()
    save_network(run / "model.pt", network, description, sources)
    return run


@pytest.fixture
def data(learned: tuple[Path, Path]) -> Path:
    return learned[1]


@pytest.fixture
def older(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle of format 1."""
    return older_bundle(read_bundle(tiny_bundle), tmp_path / "older")


def pictures(dataset: Dataset, bundle: Bundle) -> NDArray[np.uint8]:
    return np.stack([fit(dataset.picture(index), bundle.input).array for index in range(len(dataset))])


def by_hand(
    similarity: NDArray[np.float32], dataset: Dataset, taxonomy: Taxonomy, children: list[int]
) -> NDArray[np.float64]:
    """[prototypes] the mean over the parent's children of the mean over each child's pictures."""
    usual = []
    for prototype, child in enumerate(children):
        means = []
        for sibling in taxonomy.children_of(int(taxonomy.parent[child])):
            below = [
                image
                for image, leaf in enumerate(dataset.leaves.tolist())
                if taxonomy.leaves[leaf] == sibling
                or taxonomy.names[taxonomy.leaves[leaf]].startswith(taxonomy.names[sibling] + "/")
            ]
            means.append(similarity[below, prototype].astype(np.float64).mean())
        usual.append(np.mean(means))
    return np.array(usual)


def network_of(run: Path) -> PrototypeNetwork:
    network, _, _ = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    return network


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_is_measured_on_its_fit_images_and_no_probability_changes(
    run: Path, data: Path, tiny_bundle: Path
) -> None:
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["config"]["data"]["hold_out"] = 0.4
    (run / "provenance.json").write_text(json.dumps(provenance))
    before = network_of(run)
    taxonomy = before.head.taxonomy
    learned, held_out = hold_out(read_split(data, "train", taxonomy), 0.4, 0)
    assert len(held_out)
    images = torch.from_numpy(pictures(learned, read_bundle(tiny_bundle)))
    steps: list[tuple[int, int]] = []
    found = centre(run, data, device="cpu", advance=lambda done, total: steps.append((done, total)))
    after = network_of(run)
    with torch.inference_mode():
        old, new = before(images), after(images)
    children = before.head.grouping.prototype_child.tolist()
    expected = by_hand(old.similarity.numpy(), learned, taxonomy, children)
    assert expected.std() > 0
    np.testing.assert_allclose(after.head.usual.numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(new.log_probability, old.log_probability, rtol=0, atol=0)
    assert found.images == len(learned) and found.version is None
    assert sum(done for done, _ in steps) == len(learned) and {total for _, total in steps} == {len(learned)}
    assert open_run(run).metrics().separation == found.separation
    assert found.separation.prototypes == len(children)


def test_the_analysis_follows(run: Path, data: Path) -> None:
    patch = {"image": "train/0.png", "leaf": "Scuba", "cell": 0, "box": (0, 0, 1, 1), "distance": 0.0, "own": True}
    head = network_of(run).head
    names = head.taxonomy.names
    prototypes = [
        {
            "id": prototype,
            "child": names[child],
            "parent": names[child].rpartition("/")[0],
            "weight": 7.0,
            "source": {"image": "train/0.png", "box": (0, 0, 1, 1)},
            "purity": {"own": 1, "nearest": 1},
            "patches": [patch],
        }
        for prototype, child in enumerate(head.grouping.prototype_child.tolist())
    ]
    nodes = [{"name": name, "label": name} for name in names]
    sizes = {"images": 1, "rows": 8, "columns": 12, "tile": 80}
    analysis = Analysis.model_validate(
        {"format": 1, "kind": "hierarchical", **sizes, "nodes": nodes, "prototypes": prototypes}
    )
    (run / "analysis.json").write_text(json.dumps(analysis.model_dump()))
    found = centre(run, data, device="cpu")
    written = open_run(run).analysis()
    assert written is not None
    separations = [record.separation for record in written.prototypes]
    assert all(separation is not None for separation in separations)
    flags = [separation.always_on for separation in separations if separation is not None]
    assert sum(flags) == found.separation.always_on
    # The weights of siblings' prototypes, less their mean, are no longer those of an older version.
    np.testing.assert_allclose([record.weight for record in written.prototypes], head.centred_own_weight().numpy())


def test_centring_twice_gives_the_same(run: Path, data: Path) -> None:
    centre(run, data, device="cpu")
    first = network_of(run).head.usual
    centre(run, data, device="cpu")
    torch.testing.assert_close(network_of(run).head.usual, first, rtol=0, atol=0)


# ---- bundles --------------------------------------------------------------------------------------------------------


def test_a_bundle_gets_usual_similarities_and_priors_and_a_new_version(older: Bundle, data: Path) -> None:
    dataset = read_split(data, "train", older.taxonomy)
    arrays = pictures(dataset, older)
    before = Engine(older, device="cpu").run(arrays)
    found = centre(older.directory, data, device="cpu")
    bundle = read_bundle(older.directory)
    manifest = bundle.manifest
    assert bundle.version == found.version != older.version
    assert (manifest.format, manifest.graph.centred) == (2, False)
    assert found.older_files == ("model.torchscript",)
    children = [older.taxonomy.index[record.child] for record in older.prototypes]
    expected = by_hand(before.similarity, dataset, older.taxonomy, children)
    np.testing.assert_allclose([record.usual or 0.0 for record in manifest.prototypes], expected, rtol=1e-6)

    after = Engine(bundle, device="cpu").run(arrays)
    np.testing.assert_array_equal(after.log_probability, before.log_probability)
    np.testing.assert_array_equal(after.similarity, before.similarity)
    for name, prior in manifest.prior.items():
        assert abs(prior) > 1e-6, name
    siblings = [older.taxonomy.index[name] for name in ("Animal/Lion", "Animal/Ape")]
    difference = before.logit[:, siblings[0]] - before.logit[:, siblings[1]]
    np.testing.assert_allclose(after.logit[:, siblings[0]] - after.logit[:, siblings[1]], difference, atol=1e-4)
    np.testing.assert_allclose(after.logit[:, siblings].sum(1), 0.0, atol=1e-4)


def test_the_sum_of_a_centred_bundle_closes(older: Bundle, data: Path, photograph: Path) -> None:
    centre(older.directory, data, device="cpu")
    bundle = read_bundle(older.directory)
    for level in load(older.directory, device="cpu").predict(photograph, top_k=2).levels:
        if level.logit is None or level.prior is None or level.rest is None:
            continue
        assert level.prior == bundle.manifest.prior[level.node] and level.evidence_share is not None
        for piece in (*level.evidence, *level.against):
            usual = bundle.manifest.prototypes[piece.prototype].usual
            assert piece.usual == usual and usual is not None
            assert piece.contribution == pytest.approx(piece.weight * (piece.similarity - usual), abs=1e-5)
        told = sum(piece.contribution for piece in (*level.evidence, *level.against))
        assert level.prior + told + level.rest == pytest.approx(level.logit, abs=1e-5)


def test_a_prototypes_weight_is_less_its_mean_over_the_siblings(older: Bundle, data: Path, tiny_bundle: Path) -> None:
    centre(older.directory, data, device="cpu")
    expected = [record.weight for record in read_bundle(tiny_bundle).prototypes]
    found = [record.weight for record in read_bundle(older.directory).prototypes]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_energy_is_that_of_the_logits_as_trained(older: Bundle, data: Path, tmp_path: Path) -> None:
    arrays = pictures(read_split(data, "train", older.taxonomy), older)
    children = [older.taxonomy.index[record.child] for record in older.prototypes]
    table = NoveltyTable.of(older.taxonomy, older.kind, children)
    layers = read_last_layers(older, table)
    assert layers is not None and not layers.centred
    # The first group is the root's, and its layer is as trained.
    similarity = Engine(older, device="cpu").run(arrays).similarity[:, layers.groups[0].prototypes]
    energy = np.log(np.exp(similarity.astype(np.float64) @ layers.groups[0].weight.T).sum(1))
    # In the widest gap between two pictures, so that the last digit decides nothing.
    ranked = np.sort(energy)
    widest = int(np.diff(ranked).argmax())
    assert ranked[widest + 1] - ranked[widest] > 1e-3
    threshold = float(ranked[widest : widest + 2].mean())
    novelty = NoveltyRecord(score="energy", true_positive_rate=0.5, thresholds={"": threshold})
    with write_bundle(tmp_path / "novel") as draft:
        shutil.copytree(older.directory, draft, dirs_exist_ok=True)
        for name in ("manifest.json", "SHA256SUMS"):
            (draft / name).unlink()
        changed = older.manifest.model_copy(update={"novelty": novelty})
        write_manifest(draft, lambda version: changed.model_copy(update={"version": version}))
    centre(tmp_path / "novel", data, device="cpu")
    classifier = load(tmp_path / "novel", device="cpu")
    known = [bool(classifier.predict(picture).known_through_level) for picture in arrays]
    assert known == (energy >= threshold).tolist()


def test_pictures_that_the_model_did_not_learn_from_are_noted(
    learned: tuple[Path, Path], edge_bundle: Path, tmp_path: Path
) -> None:
    _, data = learned
    older = older_bundle(read_bundle(edge_bundle), tmp_path / "older")
    assert centre(shutil.copytree(older.directory, tmp_path / "same"), data, device="cpu").same_images is True
    other = shutil.copytree(data, tmp_path / "data")
    first = next((other / "train" / "Scuba").iterdir())
    shutil.copyfile(first, first.with_name("again.png"))
    assert centre(older.directory, other, device="cpu").same_images is False


# ---- errors ---------------------------------------------------------------------------------------------------------


def added_class(data: Path) -> None:
    shutil.copytree(data / "train" / "Scuba", data / "train" / "Scooba")


def lost_class(data: Path) -> None:
    shutil.rmtree(data / "train" / "Scuba")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (added_class, "has the class 'Scooba'; did you mean 'Scuba'., which .* does not know; give the data set"),
        (lost_class, "lacks the class 'Scuba', which .* knows; give the data set that it learned from"),
    ],
)
@pytest.mark.parametrize("of", ["run", "bundle"])
def test_another_data_set_is_refused(
    run: Path, older: Bundle, data: Path, tmp_path: Path, change: Callable[[Path], None], message: str, of: str
) -> None:
    other = shutil.copytree(data, tmp_path / "data")
    change(other)
    with pytest.raises(TaxonomyError, match=message):
        centre(run if of == "run" else older.directory, other, device="cpu")
    assert not network_of(run).head.usual.any()
    assert read_bundle(older.directory).version == older.version


def test_a_run_is_centred_on_no_other_pictures_of_its_classes(run: Path, data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "data")
    first = next((other / "train" / "Scuba").iterdir())
    shutil.copyfile(first, first.with_name("again.png"))
    with pytest.raises(InputError, match=r"this is not the data set that .* learned from"):
        centre(run, other, device="cpu")


def test_what_can_not_be_centred_says_why(tiny_bundle: Path, twin_bundle: Path, data: Path, tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    with pytest.raises(InputError, match="its graph tells centred evidence itself; to measure anew, centre the run"):
        centre(tiny_bundle, data)
    without = older_bundle(bundle, tmp_path / "without", weights=False)
    with pytest.raises(InputError, match="without its last-layer weights"):
        centre(without.directory, data)
    write_ensemble([bundle, read_bundle(twin_bundle)], tmp_path / "both", name="both", overwrite=False)
    with pytest.raises(InputError, match="an ensemble; centre its members"):
        centre(tmp_path / "both", data)
    with pytest.raises(InputError, match="no such folder; give a finished run or a bundle"):
        centre(tmp_path / "none", data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the run is not finished"):
        centre(tmp_path / "empty", data)

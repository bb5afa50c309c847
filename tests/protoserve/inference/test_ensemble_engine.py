"""The answers of an ensemble against sums by hand in double precision, from the members' own networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import protoserve
from protoserve.bundle.ensemble import Ensemble, ensemble_of
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError
from protoserve.graph_signature import MISSING_RANK
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.engine import Engine, Outputs
from protoserve.inference.ensemble_engine import EnsembleEngine, OutputCombiner
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.schema import NoveltyRecord, Prediction
from tests.protoserve.inference.wrong_images import CHANGES, Change

TEMPERATURES = ({"": 2.0, "Animal": 0.5}, {"Animal/Ape": 3.0})


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path, twin_bundle: Path) -> list[Bundle]:
    """Two bundles, calibrated: temperatures are applied to logits, which the graphs return as they are."""
    found = [read_bundle(directory) for directory in (tiny_bundle, twin_bundle)]
    return [
        replace(bundle, manifest=bundle.manifest.model_copy(update={"temperature": temperature}))
        for bundle, temperature in zip(found, TEMPERATURES, strict=True)
    ]


@pytest.fixture(scope="module")
def ensemble(bundles: list[Bundle]) -> Ensemble:
    return ensemble_of(bundles)


@pytest.fixture(scope="module")
def classifier(ensemble: Ensemble) -> Classifier:
    return Classifier(ensemble, EnsembleEngine(ensemble, device="cpu"))


@pytest.fixture(scope="module")
def images(tiny_run: Path, twin_run: Path) -> NDArray[np.uint8]:
    """Noise, and source images of prototypes of both members: uint8 [N, 64, 96, 3]."""
    noise = np.random.default_rng(3).integers(0, 256, (12, 64, 96, 3), dtype=np.uint8)
    sources = [np.load(run / "samples.npy")[::5] for run in (tiny_run, twin_run)]
    return np.concatenate([noise, *sources])


@pytest.fixture(scope="module")
def answers(bundles: list[Bundle], images: NDArray[np.uint8]) -> list[Outputs]:
    """Each member's own answer."""
    return [Engine(bundle, device="cpu").run(images) for bundle in bundles]


@pytest.fixture(scope="module")
def outputs(classifier: Classifier, images: NDArray[np.uint8]) -> Outputs:
    """The ensemble's answer."""
    return classifier.engine.run(images)


def weights_of(run: Path) -> dict[tuple[int, int], tuple[float, float]]:
    """From (prototype, node) to the centred last-layer weight of a run's own network, and to the prototype's usual
    similarity."""
    network, _, _ = load_network(run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    head = network.head
    weight = head.effective_weight().detach().double()
    taxonomy = head.taxonomy
    found = {}
    for prototype, child in enumerate(head.grouping.prototype_child.tolist()):
        siblings = taxonomy.children_of(int(taxonomy.parent[child]))
        column = weight[head.grouping.prototype_group[prototype], :, head.grouping.prototype_slot[prototype]]
        mean = float(column[: len(siblings)].mean())
        for place, node in enumerate(siblings):
            found[prototype, node] = float(column[place]) - mean, float(head.usual[prototype])
    return found


def by_hand(
    bundles: Sequence[Bundle], answers: Sequence[Outputs], image: int
) -> tuple[dict[int, float], dict[int, float]]:
    """(log-probability of every node, logit of every node that competes) of one image."""
    taxonomy = bundles[0].taxonomy
    logit = {}
    for group in taxonomy.groups:
        parent = "" if group.parent < 0 else taxonomy.names[group.parent]
        for node in group.children:
            logit[node] = sum(
                float(answer.logit[image, node]) / bundle.manifest.temperature.get(parent, 1.0)
                for bundle, answer in zip(bundles, answers, strict=True)
            )
    log_probability = {}
    for node, path in enumerate(taxonomy.nodes):
        total = 0.0
        for depth in range(1, len(path) + 1):
            ancestor = taxonomy.index["/".join(path[:depth])]
            siblings = taxonomy.children_of(int(taxonomy.parent[ancestor]))
            if len(siblings) > 1:
                total += logit[ancestor] - math.log(sum(math.exp(logit[sibling]) for sibling in siblings))
        log_probability[node] = total
    return log_probability, logit


def test_logits_add_up_before_the_softmax_and_paths_multiply_after_it(
    bundles: list[Bundle], answers: list[Outputs], outputs: Outputs
) -> None:
    taxonomy = bundles[0].taxonomy
    for image in range(len(outputs)):
        log_probability, logit = by_hand(bundles, answers, image)
        for node, value in log_probability.items():
            assert outputs.log_probability[image, node] == pytest.approx(value, abs=1e-5)
            assert outputs.logit[image, node] == pytest.approx(logit.get(node, 0.0), abs=1e-5)
        leaf = max(taxonomy.leaves, key=lambda node: log_probability[node])
        assert outputs.path[image].tolist() == taxonomy.path_at_level[leaf].tolist()


def test_evidence_is_the_largest_contributions_of_all_members(
    ensemble: Ensemble, answers: list[Outputs], outputs: Outputs, tiny_run: Path, twin_run: Path
) -> None:
    """Also where a member on its own would have taken another path, and its graph shows evidence for other nodes."""
    taxonomy, first_prototypes = ensemble.taxonomy, ensemble.first_prototypes
    tables = [weights_of(run) for run in (tiny_run, twin_run)]
    priors = EvidenceTable.of(ensemble).prior
    for image in range(len(outputs)):
        for level, node in enumerate(outputs.path[image].tolist()):
            if node < 0 or len(taxonomy.children_of(int(taxonomy.parent[node]))) == 1:
                assert (outputs.evidence_prototype[image, level] == -1).all()
                continue
            parent = int(taxonomy.parent[node])
            name = "" if parent < 0 else taxonomy.names[parent]
            contributions, missing, prior = {}, set(), 0.0
            for number, (bundle, answer, table) in enumerate(zip(ensemble.members, answers, tables, strict=True)):
                temperature = bundle.manifest.temperature.get(name, 1.0)
                for (prototype, owner), (weight, usual) in table.items():
                    if owner == node:
                        unusual = float(answer.similarity[image, prototype]) - usual
                        joint = first_prototypes[number] + prototype
                        contributions[joint] = weight / temperature * unusual
                        missing |= {joint} if unusual <= 0 else set()
                        prior += weight / temperature * usual
            # What is missing counts less in the order, but not in the sum.
            by_rank = sorted(
                contributions.items(), key=lambda item: item[1] * (MISSING_RANK if item[0] in missing else 1.0)
            )
            ordered = [value for _, value in by_rank]
            # All of them and the prior add up to the logit, and the shown ones come first in the order.
            assert priors[node] == pytest.approx(prior, abs=1e-5)
            assert sum(contributions.values()) + prior == pytest.approx(outputs.logit[image, node], abs=1e-4)
            positive = sum(value for value in contributions.values() if value > 0)
            assert outputs.positive_contribution[image, level] == pytest.approx(positive, abs=1e-4)
            smallest = ordered[: outputs.against_contribution.shape[2]]
            np.testing.assert_allclose(outputs.against_contribution[image, level], smallest, atol=1e-5)
            shown = outputs.evidence_prototype[image, level].tolist()
            assert len(set(shown)) == len(shown) == min(ensemble.top_k, len(contributions))
            largest = ordered[::-1][: len(shown)]
            given = outputs.evidence_contribution[image, level]
            np.testing.assert_allclose(given, largest, atol=1e-5)
            np.testing.assert_allclose(given, [contributions[prototype] for prototype in shown], atol=1e-5)
            subtracted = [ensemble.prototypes[prototype].usual for prototype in shown]
            above = outputs.evidence_similarity[image, level] - subtracted
            np.testing.assert_allclose(given, outputs.evidence_weight[image, level] * above, atol=1e-5)


def test_cells_and_maps_are_the_members_own(ensemble: Ensemble, answers: list[Outputs], outputs: Outputs) -> None:
    apart = together = 0
    for image, level, rank in np.argwhere(outputs.evidence_prototype >= 0).tolist():
        prototype = int(outputs.evidence_prototype[image, level, rank])
        member = ensemble.member_of(prototype)
        answer, graph = answers[member], ensemble.members[member].manifest.graph
        own = prototype - ensemble.first_prototypes[member]
        assert outputs.evidence_cell[image, level, rank] == answer.cell[image, own]
        heat = outputs.evidence_map[image, level, rank]
        if answer.path[image, level] != outputs.path[image, level]:
            apart += 1
            assert np.isnan(heat).all()
            continue
        together += 1
        drawn = heat[: graph.rows, : graph.columns]
        assert np.isnan(heat).sum() == heat.size - drawn.size
        cell = np.unravel_index(drawn.argmax(), drawn.shape)
        assert np.ravel_multi_index(cell, drawn.shape) == answer.cell[image, own]
        assert drawn.max() == pytest.approx(outputs.evidence_similarity[image, level, rank], abs=1e-4)
    assert apart and together


def test_an_ensemble_of_one_answers_as_its_bundle(tiny_bundle: Path, photograph: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    single = load(bundle, device="cpu")
    alone = Classifier(ensemble_of([bundle]), EnsembleEngine(ensemble_of([bundle]), device="cpu"))
    assert_equal_but_for_the_member(alone.predict(photograph, maps=True), single.predict(photograph, maps=True))
    assert isinstance(load([tiny_bundle], device="cpu").bundle, Bundle)


def test_a_flat_ensemble_sums_leaves_upwards(flat_bundle: Path, photograph: Path) -> None:
    bundle = read_bundle(flat_bundle)
    single = load(bundle, device="cpu")
    alone = Classifier(ensemble_of([bundle]), EnsembleEngine(ensemble_of([bundle]), device="cpu"))
    assert_equal_but_for_the_member(alone.predict(photograph, maps=True), single.predict(photograph, maps=True))
    # Twice the same logits: by hand, the softmax of the doubled ones.
    twin = replace(bundle, manifest=bundle.manifest.model_copy(update={"version": "another"}))
    combiner = OutputCombiner(ensemble_of([bundle, twin]))
    fitted = single.fit(photograph).array[None]
    answer = single.engine.run(fitted)
    leaves = list(bundle.taxonomy.leaves)
    doubled = torch.from_numpy(2 * answer.logit[:, leaves]).double().softmax(1).numpy()
    found = np.exp(combiner.combine([answer, answer]).log_probability.astype(np.float64))
    np.testing.assert_allclose(found, doubled @ bundle.taxonomy.leaves_below.T, atol=1e-6)


def assert_equal_but_for_the_member(given: Prediction, wanted: Prediction) -> None:
    assert given.path == wanted.path and given.image == wanted.image
    for one, other in zip(given.levels, wanted.levels, strict=True):
        numbers = ("probability", "conditional", "logit", "evidence_share")
        for name in numbers:
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-5)
        for mine, theirs in zip(one.evidence, other.evidence, strict=True):
            assert (mine.prototype, mine.box, mine.source) == (theirs.prototype, theirs.box, theirs.source)
            assert (mine.member, theirs.member) == (0, None)
            assert mine.contribution == pytest.approx(theirs.contribution, abs=1e-5)
            np.testing.assert_allclose(np.array(mine.map), np.array(theirs.map))
        assert [node.node for node in one.alternatives] == [node.node for node in other.alternatives]


def test_predictions_name_the_member_and_its_own_boxes(
    classifier: Classifier, ensemble: Ensemble, photograph: Path
) -> None:
    prediction = classifier.predict(photograph, top_k=ensemble.top_k, maps=True)
    assert [member.name for member in prediction.model.members or []] == ["tiny", "twin"]
    sizes = {0: ((16, 17), (18, 19)), 1: ((33, 34), (37, 38))}  # 12 × 8 and 6 × 4 cells over 200 × 150 pixels
    seen = set()
    for level in prediction.levels:
        for evidence in level.evidence:
            assert evidence.member is not None
            assert evidence.member == ensemble.member_of(evidence.prototype)
            left, top, right, bottom = evidence.box
            widths, heights = sizes[evidence.member]
            assert right - left in widths and bottom - top in heights
            if evidence.map is not None:
                assert (len(evidence.map), len(evidence.map[0])) == ((8, 12), (4, 6))[evidence.member]
            seen.add(evidence.member)
    assert seen == {0, 1}


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("strict", [0, 1])
def test_a_level_is_known_where_half_of_those_that_can_say_so_know_it(
    bundles: list[Bundle], answers: list[Outputs], member: int, strict: int
) -> None:
    """Thresholds that no score or every score reaches, in one member or in both."""
    never, always = {"": 1e6}, {"": -1e6}

    def with_thresholds(number: int, thresholds: Mapping[str, float]) -> Bundle:
        record = NoveltyRecord(score="energy", true_positive_rate=0.95, thresholds=dict(thresholds))
        return replace(bundles[number], manifest=bundles[number].manifest.model_copy(update={"novelty": record}))

    def known(pair: list[Bundle]) -> NDArray[np.bool_]:
        found = OutputCombiner(ensemble_of(pair)).combine(answers).known
        assert found is not None
        return found

    path = OutputCombiner(ensemble_of(bundles)).combine(answers).path
    assert OutputCombiner(ensemble_of(bundles)).combine(answers).known is None
    alone = list(bundles)
    alone[member] = with_thresholds(member, never if strict else always)
    expected = np.zeros_like(path, dtype=bool) if strict else path >= 0
    np.testing.assert_array_equal(known(alone), expected)
    both = [with_thresholds(0, never), with_thresholds(1, never if strict else always)]
    np.testing.assert_array_equal(known(both), expected)


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_other_shapes_and_types_and_an_empty_batch_are_refused(
    classifier: Classifier, images: NDArray[np.uint8], change: Change
) -> None:
    with pytest.raises(InputError, match=r"takes uint8 images \[N, 64, 96, 3\], not"):
        classifier.engine.run(change(images))


def test_load_takes_a_list_and_answers_the_same_in_any_batch(
    tiny_bundle: Path, twin_bundle: Path, photograph: Path
) -> None:
    model = protoserve.load([tiny_bundle, str(twin_bundle)], device="cpu", threads=1)
    one, again = model.predict([photograph, photograph])
    assert one == again
    assert one.path == model.predict(photograph).path
    with pytest.raises(InputError, match="no such bundle"):
        protoserve.load([tiny_bundle, Path("nowhere")])

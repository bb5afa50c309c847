"""Refits of last layers without prototypes that are off, against scipy's minimum of the same objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]

from export.refitting import (
    PENALTIES,
    log_probabilities,
    novelty_scores,
    promise_again,
    recalibrate,
    refit,
    refitted_thresholds,
)
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.run.similarities import KeptImages, KeptSimilarities
from protoserve.schema import NoveltyRecord, PromiseRecord
from protoserve.taxonomy import Taxonomy

# The prototypes of a, then of b, then of c's children x and y, two each.
LEAVES = ("a", "b", "c/x", "c/y")


def small_head() -> PrototypeHead:
    torch.manual_seed(0)
    tree = Taxonomy.from_paths(LEAVES)
    head = PrototypeHead(tree, prototype_children(tree, "hierarchical", 2), 4)
    with torch.no_grad():
        head.usual.uniform_()
    return head.eval()


def kept(head: PrototypeHead, images: int = 60) -> KeptSimilarities:
    """Similarities that tell the leaves apart, with noise."""
    generator = np.random.default_rng(1)
    owner = [head.taxonomy.names[node] for node in head.grouping.prototype_child.tolist()]

    def part(count: int) -> KeptImages:
        leaves = np.arange(count) % len(LEAVES)
        names = [head.taxonomy.names[head.taxonomy.leaves[leaf]] for leaf in leaves]
        own = np.array([[name.startswith(node) for node in owner] for name in names])
        similarity = (1.5 * own + generator.normal(1.0, 1.0, own.shape)).astype(np.float32)
        return KeptImages(tuple(f"{number}.png" for number in range(count)), leaves, similarity)

    return KeptSimilarities(part(images), part(images), mirrored=False)


@pytest.mark.parametrize("group", [0, 1])
def test_the_weights_are_those_of_the_least_objective(group: int) -> None:
    head, similarities = small_head(), kept(small_head())
    head.switch_off([0])
    start = head.weight.detach().clone()
    found = refit(head, similarities, [])
    assert found.penalty in PENALTIES
    nodes = list(head.taxonomy.groups[group].children)
    own = np.flatnonzero(head.grouping.prototype_group.numpy() == group)
    below = head.taxonomy.leaves_below.T[similarities.fit.leaves][:, nodes]
    rows, target = np.flatnonzero(below.any(axis=1)), below.argmax(axis=1)
    inputs, free = similarities.fit.similarity[rows][:, own].astype(np.float64), own != 0
    base = start[group, : len(nodes), : len(own)].double().numpy() * free

    def objective(flat: NDArray[np.float64]) -> float:
        weight = base.copy()
        weight[:, free] = flat.reshape(len(nodes), -1)
        logits = inputs @ weight.T
        loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(rows)), target[rows]]
        change = ((weight - base) ** 2 * (inputs**2).mean(axis=0)).sum()
        return float(loss.mean() + found.penalty * change)

    best = minimize(objective, base[:, free].ravel(), method="BFGS", options={"gtol": 1e-8})
    weight = head.weight[group, : len(nodes), : len(own)].detach().double().numpy()
    assert objective(weight[:, free].ravel()) <= best.fun + 1e-6
    assert (weight[:, ~free] == 0.0).all()


def test_what_is_required_keeps_its_weights_and_what_is_off_has_none() -> None:
    head, similarities = small_head(), kept(small_head())
    head.switch_off([0, 5])
    before = head.weight.detach().clone()
    result = refit(head, similarities, [2])
    grouping = head.grouping

    def column(table: torch.Tensor, prototype: int) -> torch.Tensor:
        return table[grouping.prototype_group[prototype], :, grouping.prototype_slot[prototype]]

    assert torch.equal(column(head.weight, 2), column(before, 2))
    assert not column(head.weight, 0).any() and not column(head.weight, 5).any()
    assert not torch.equal(column(head.weight, 3), column(before, 3))
    assert result.after < result.before


def test_temperatures_and_thresholds_follow() -> None:
    head, similarities = small_head(), kept(small_head())
    head.switch_off([0])
    refit(head, similarities, [])
    before = log_probabilities(head, similarities.selection)
    recalibrate(head, similarities.selection)
    after = log_probabilities(head, similarities.selection)
    leaves = np.array(head.taxonomy.leaves)[similarities.selection.leaves]
    rows = np.arange(len(leaves))
    assert head.temperature.tolist() != [1.0, 1.0]
    assert after[rows, leaves].mean() >= before[rows, leaves].mean()
    record = refitted_thresholds(
        head, similarities.selection, NoveltyRecord(score="energy", true_positive_rate=0.9, thresholds={"": 9.0})
    )
    scores = novelty_scores(head, similarities.selection, "energy")
    assert 0.9 <= (scores[:, 0] >= record.thresholds[""]).mean() < 1.0
    promise = PromiseRecord(
        precision=0.6, confidence=0.9, images=1, thresholds={"0.6": 0.5}, least_images={"0.6": 1}, folder="calibration"
    )
    calibration, again = promise_again(head, similarities.selection, record, promise)
    assert again.images == len(calibration) == 60 and again.folder == "calibration"
    assert np.allclose(np.exp(calibration.log_probability).sum(axis=1), 1.0, atol=1e-5)


def test_a_group_without_images_stays_as_it_is() -> None:
    head = small_head()
    similarities = kept(head)
    shallow = similarities.fit.leaves < 2
    fit = KeptImages(
        tuple(np.array(similarities.fit.images)[shallow]),
        similarities.fit.leaves[shallow],
        similarities.fit.similarity[shallow],
    )
    before = head.weight.detach().clone()
    refit(head, KeptSimilarities(fit, similarities.selection, mirrored=False), [])
    assert torch.equal(head.weight[1], before[1]) and not torch.equal(head.weight[0], before[0])


@pytest.mark.parametrize("off", [[], [1]])
def test_log_probabilities_are_the_heads(off: list[int]) -> None:
    head = small_head()
    head.switch_off(off)
    images = kept(head).selection
    found = log_probabilities(head, images)
    similarity = images.similarity.copy()
    similarity[:, off] = head.usual.numpy()[off]
    root = head.weight[0].detach().numpy() @ similarity[:, head.grouping.prototype_group.numpy() == 0].T
    expected = root[0] - np.logaddexp.reduce(root, axis=0)
    assert found[:, head.taxonomy.index["a"]] == pytest.approx(expected, abs=1e-5)

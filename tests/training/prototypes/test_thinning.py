"""Which prototypes remain: each rule by hand or by trying everything, and a smaller head that answers like the larger
one without the removed weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity, SimilarityForm
from protoserve.taxonomy import Kind, Taxonomy
from training.prototypes.thinning import (
    class_sizes,
    mean_similarities,
    near_duplicates,
    pure_prototypes,
    replacements,
    smaller_head,
    strongest,
    with_reweighted_replacements,
)

TAXONOMY = Taxonomy.from_paths(["A/B/x", "A/B/y", "A/z", "Q"])


def make_head(kind: Kind = "hierarchical", per_child: int = 3, dimensions: int = 4) -> PrototypeHead:
    torch.manual_seed(0)
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, kind, per_child), dimensions, kind=kind)
    with torch.no_grad():
        head.weight.normal_()
    return head.eval()


def test_prototypes_of_one_cell_and_close_ones_of_one_child_are_duplicates() -> None:
    head = make_head()
    assert head.grouping.prototype_child[:6].tolist() == [0, 0, 0, 1, 1, 1]  # two children of the root, three each
    with torch.no_grad():
        head.prototypes.copy_(torch.rand(head.prototypes.shape) + torch.arange(len(head.prototypes))[:, None])
        head.prototypes[1] = head.prototypes[0] + 0.01  # close to 0
        head.prototypes[3] = head.prototypes[0]  # equal, but another child's
        head.prototypes[5] = head.prototypes[4] + 5.0  # far, but cut from the same cell
    source = np.stack([np.arange(len(head.prototypes)), np.zeros(len(head.prototypes), dtype=np.int64)], axis=1)
    source[5] = source[4]
    strength = np.ones(len(head.prototypes))
    strength[1] = strength[4] = 2.0
    found = near_duplicates(head, source, strength, within=0.01)
    expected = np.arange(len(head.prototypes))
    expected[0], expected[5] = 1, 4  # the stronger of each pair stands for both
    assert found.tolist() == expected.tolist()


def test_no_chain_of_neighbours_joins_what_lies_apart() -> None:
    head = make_head(dimensions=1)
    with torch.no_grad():
        head.prototypes[:, 0] = torch.arange(len(head.prototypes)) * 100.0
        # Neighbours 1 apart, the ends 2; among siblings the median distance squared is far above.
        head.prototypes[:3, 0] = torch.tensor([0.0, 1.0, 2.0])
    source = np.stack([np.arange(len(head.prototypes))] * 2, axis=1)
    limit = np.median([(a - b) ** 2 for a in (0.0, 1.0, 2.0) for b in (300.0, 400.0, 500.0)])
    strength = np.arange(len(head.prototypes), 0, -1.0)
    found = near_duplicates(head, source, strength, within=1.5 / limit)
    assert found[:3].tolist() == [0, 0, 2]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_replacements_are_the_nearest_of_the_same_child(kind: Kind) -> None:
    head = make_head(kind, per_child=4)
    child, vectors = head.grouping.prototype_child.tolist(), head.prototypes.detach().double()
    keep = np.array([number for number in range(len(child)) if number % 4 in (1, 2)])
    found = replacements(head, keep)
    for number in range(len(child)):
        possible = [other for other in keep if child[other] == child[number]]
        expected = min(possible, key=lambda other: float((vectors[other] - vectors[number]).square().sum()))
        assert found[number] == (number if number in keep else expected)


def test_the_strongest_stay_and_the_strongest_of_every_child() -> None:
    strength = np.array([0.1, 0.2, 9.0, 8.0, 7.0, 6.0])
    child = np.array([0, 0, 1, 1, 1, 2])
    assert strongest(strength, child, 4).tolist() == [1, 2, 3, 5]
    assert strongest(strength, child, 5).tolist() == [1, 2, 3, 4, 5]
    assert strongest(strength, child, 0).tolist() == [1, 2, 5]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_means_run_over_the_images_below_the_parent(kind: Kind) -> None:
    head = make_head(kind)
    leaves = np.arange(21) % len(TAXONOMY.leaves)
    distance = torch.rand(21, len(head.prototypes))
    mean = mean_similarities(head, distance, leaves)
    for number, child in enumerate(head.grouping.prototype_child.tolist()):
        parent = TAXONOMY.names[child].rpartition("/")[0] if kind == "hierarchical" else ""
        below = [TAXONOMY.names[TAXONOMY.leaves[leaf]].startswith(f"{parent}/" if parent else "") for leaf in leaves]
        values = head.similarity.of_distance(distance[torch.tensor(below), number].double()).numpy()
        assert mean[number] == pytest.approx(values.mean(), rel=1e-6)


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_duplicates_leave_their_weights_without_changing_an_answer(kind: Kind) -> None:
    head = make_head(kind, per_child=2)
    with torch.no_grad():
        head.prototypes[1::2] = head.prototypes[::2]
    replacement = np.arange(len(head.prototypes)) // 2 * 2
    smaller = smaller_head(
        with_reweighted_replacements(head, replacement, np.ones(len(replacement))), np.unique(replacement)
    )
    latent = torch.rand(5, 4, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(smaller(latent).group_logits, head(latent).group_logits, rtol=1e-5, atol=1e-5)


def test_inheritance_keeps_every_mean_logit() -> None:
    head = make_head(per_child=4)
    # All images are below both groups' parents only for the root; so its own logits are looked at.
    distance = torch.rand(400, len(head.prototypes))
    leaves = np.arange(400) % len(TAXONOMY.leaves)
    mean = mean_similarities(head, distance, leaves)
    keep = np.array([number for number in range(len(head.prototypes)) if number % 4 == 3])
    smaller = smaller_head(with_reweighted_replacements(head, replacements(head, keep), mean), keep)
    with torch.no_grad():
        before = head.classify(distance, distance.long()).group_logits[:, 0, :2].mean(0)
        after = smaller.classify(distance[:, torch.from_numpy(keep)], distance[:, keep].long()).group_logits[:, 0, :2]
    torch.testing.assert_close(after.mean(0), before, rtol=1e-4, atol=1e-4)


# ---- purity and the smaller head --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "child", "size", "kept"),
    [
        ([6, 3, 2, 0], [4, 4, 4, 4], [9, 9, 9, 9], [0, 1]),
        # The purest of a child stays, the first of equals.
        ([1, 2, 2, 5], [4, 4, 4, 7], [9, 9, 9, 9], [1, 3]),
        ([0, 0, 6, 6], [4, 4, 7, 7], [9, 9, 9, 9], [0, 2, 3]),
        # Two images can't give three patches.
        ([2, 1, 2, 2], [4, 4, 7, 7], [2, 2, 9, 9], [0, 2]),
    ],
)
def test_a_prototype_is_removed_when_fewer_than_three_of_its_nearest_patches_are_its_own(
    own: list[int], child: list[int], size: list[int], kept: list[int]
) -> None:
    found = pure_prototypes(np.array(own), np.array(child), np.array(size), at_least=3)
    assert found.tolist() == kept


def test_the_size_of_a_class_counts_all_images_below_its_child() -> None:
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, "hierarchical", 1), 4)
    # Leaves in node order: Q, A/z, A/B/x, A/B/y.
    assert [TAXONOMY.names[leaf] for leaf in TAXONOMY.leaves] == ["Q", "A/z", "A/B/x", "A/B/y"]
    found = class_sizes(head, np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3]))
    names = [TAXONOMY.names[child] for child in head.grouping.prototype_child]
    assert dict(zip(names, found.tolist(), strict=True)) == {
        "A": 9, "Q": 1, "A/B": 7, "A/z": 2, "A/B/x": 3, "A/B/y": 4
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize("form", ["log1p", "log-ratio", "cosine"])
def test_a_smaller_head_answers_like_the_larger_one_with_zeroed_weights(kind: Kind, form: SimilarityForm) -> None:
    torch.manual_seed(1)
    similarity = Similarity(form, epsilon=0.01)
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, kind, 3, 2), 6, kind=kind, similarity=similarity)
    with torch.no_grad():
        head.weight.normal_()
        head.temperature.uniform_(0.5, 2.0)
        head.centre.uniform_()
    head.eval()
    children = head.grouping.prototype_child.numpy()
    # One of each child, and some more.
    kept = np.sort(np.append(np.unique(children, return_index=True)[1], [1, len(children) - 1]))
    smaller = smaller_head(head, kept)
    latent = torch.rand(7, 6, 3, 4)
    with torch.no_grad():
        for number in set(range(len(children))) - set(kept.tolist()):
            head.weight[head.grouping.prototype_group[number], :, head.grouping.prototype_slot[number]] = 0.0
        expected, found = head(latent), smaller(latent)
    assert not smaller.training
    assert smaller.grouping.prototype_child.tolist() == children[kept].tolist()
    torch.testing.assert_close(found.group_logits, expected.group_logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_probability, expected.log_probability, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.similarity, expected.similarity[:, kept])
    assert torch.equal(found.cell, expected.cell[:, kept])


def test_no_child_may_lose_its_last_prototype() -> None:
    head = PrototypeHead(TAXONOMY, prototype_children(TAXONOMY, "hierarchical", 1), 4)
    with pytest.raises(ValueError, match="no prototype of 'A/z' is kept"):
        smaller_head(head, np.array([0, 1, 2, 4, 5]))

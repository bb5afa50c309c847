"""The prototype head against independent computations in double precision and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protoserve.errors import InputError
from protoserve.networks.fused_head import explain
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity, to_unit_length
from protoserve.taxonomy import ROOT, Kind, Taxonomy
from tests.protoserve.networks.heads import SIMILARITIES, expected, head_over_random_tree, random_head, random_latent


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize("similarity", SIMILARITIES, ids=str)
def test_everything_agrees_with_loops_in_double_precision(kind: Kind, similarity: Similarity) -> None:
    head = random_head(kind, similarity)
    latent = random_latent(head, 5, 3, 4)
    wanted = expected(head, latent)
    with torch.inference_mode():
        output = head(latent)
    np.testing.assert_allclose(output.distance, wanted.distance, atol=5e-6)
    np.testing.assert_array_equal(output.cell, wanted.cell)
    np.testing.assert_allclose(output.similarity, wanted.similarity, atol=1e-5)
    np.testing.assert_allclose(output.log_probability, wanted.log_probability, atol=1e-4)
    members = head.grouping.member_node.numpy()
    for group, nodes in enumerate(members):
        present = nodes < len(head.taxonomy.nodes)
        found = output.group_logits[:, group].numpy()
        # As trained: what is added to all members alike is part of them.
        centred = found[:, present] - found[:, present].mean(1, keepdims=True)
        np.testing.assert_allclose(centred, wanted.logit[:, nodes[present]], atol=1e-4)
        assert (found[:, ~present] <= -1e29).all()


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_training_and_evaluation_agree_where_no_distance_is_small(kind: Kind) -> None:
    head = random_head(kind, Similarity("log1p", 1e-3))
    latent = random_latent(head, 5, 3, 4)
    with torch.no_grad():
        evaluated, trained = head(latent), head.train()(latent)
    assert float(evaluated.distance.min()) > 1e-3
    for name, values in evaluated._asdict().items():
        torch.testing.assert_close(getattr(trained, name), values, atol=1e-3, rtol=0, msg=name)


def test_a_tree_worked_by_hand() -> None:
    """Leaves at depths 1, 2 and 4; every distance is chosen, so each probability follows on paper."""
    taxonomy = Taxonomy.from_paths(["Q", "A/w", "A/B/C/x", "A/B/C/y"])
    head = PrototypeHead(
        taxonomy, prototype_children(taxonomy, "hierarchical", 1), 1, similarity=Similarity(epsilon=1.0)
    )
    head.reset_weight(own=1.0, other=0.0)
    # One cell at 0, so a prototype at √d has the distance d; log(1 + 1/(d + 1)) is log 2 at 0 and log 1.5 at 1.
    position = {"Q": 0.0, "A": 1.0, "A/w": 1.0, "A/B": 0.0, "A/B/C/x": 0.0, "A/B/C/y": 1.0}
    with torch.no_grad():
        for number, child in enumerate(head.grouping.prototype_child.tolist()):
            head.prototypes[number] = position[taxonomy.names[child]]
        probability = head(torch.zeros(1, 1, 1, 1)).log_probability.exp()[0]
    # Softmax of logarithms is a ratio: P(Q) = 2 / 3.5, P(A) = 1.5 / 3.5, P(B | A) = 2 / 3.5, C is B's only child.
    expected = {
        "Q": 2 / 3.5,
        "A": 1.5 / 3.5,
        "A/w": 1.5 / 3.5 * 1.5 / 3.5,
        "A/B": 1.5 / 3.5 * 2 / 3.5,
        "A/B/C": 1.5 / 3.5 * 2 / 3.5,
        "A/B/C/x": 1.5 / 3.5 * 2 / 3.5 * 2 / 3.5,
        "A/B/C/y": 1.5 / 3.5 * 2 / 3.5 * 1.5 / 3.5,
    }
    for name, value in expected.items():
        assert float(probability[taxonomy.index[name]]) == pytest.approx(value, abs=1e-6), name


def test_the_cosine_finds_the_smallest_angle_where_the_nearest_point_lies_elsewhere() -> None:
    taxonomy = Taxonomy.from_paths(["Q", "R"])
    head = PrototypeHead(taxonomy, [0, 1], 2, similarity=Similarity("cosine")).eval()
    cells = torch.tensor([[3.0, 0.3], [0.9, 0.9]]).t().reshape(1, 2, 1, 2)
    with torch.no_grad():
        # From (1, 0), the second cell is nearer, and the first lies in almost the same direction.
        head.prototypes[:] = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
        output = head(to_unit_length(cells, 1))
    assert output.cell[0].tolist() == [0, 1]
    expected = [3 / math.hypot(3, 0.3), math.sqrt(0.5)]
    assert output.similarity[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert output.distance[0].tolist() == pytest.approx([2 - 2 * value for value in expected], abs=1e-6)


def test_a_flat_tree_worked_by_hand() -> None:
    """Inner nodes by summation over leaves at depths 1, 2 and 4, for the same distances."""
    taxonomy = Taxonomy.from_paths(["Q", "A/w", "A/B/C/x", "A/B/C/y"])
    head = PrototypeHead(
        taxonomy, prototype_children(taxonomy, "flat", 1), 1, kind="flat", similarity=Similarity(epsilon=1.0)
    ).eval()
    head.reset_weight(own=1.0, other=0.0)
    position = {"Q": 0.0, "A/w": 1.0, "A/B/C/x": 0.0, "A/B/C/y": 1.0}
    with torch.no_grad():
        for number, child in enumerate(head.grouping.prototype_child.tolist()):
            head.prototypes[number] = position[taxonomy.names[child]]
        probability = head(torch.zeros(1, 1, 1, 1)).log_probability.exp()[0]
    # The softmax of log 2 and log 1.5 over four leaves.
    leaf = {"Q": 2 / 7, "A/w": 1.5 / 7, "A/B/C/x": 2 / 7, "A/B/C/y": 1.5 / 7}
    inner = {"A": 5 / 7, "A/B": 3.5 / 7, "A/B/C": 3.5 / 7}
    for name, value in (leaf | inner).items():
        assert float(probability[taxonomy.index[name]]) == pytest.approx(value, abs=1e-6), name


def test_the_similarity_of_an_exact_match_survives_cancellation() -> None:
    """‖z‖² − 2zp + ‖p‖² alone is off by as much as ε here; the refined distance is not."""
    head = random_head("flat", Similarity(epsilon=1e-4), dimensions=128)
    torch.manual_seed(1)
    latent = torch.rand(4, 128, 7, 7)
    with torch.no_grad():
        for number in range(len(head.prototypes)):
            head.prototypes[number] = latent[number % 4, :, number % 7, number % 5]
        found = head(latent).similarity.amax(0)
    assert torch.all((found - math.log(1 + 1e4)).abs() < 1e-3)


def test_weights_start_as_published_and_never_leave_their_group() -> None:
    head = random_head()
    head.reset_weight()
    weight = head.effective_weight()
    assert set(weight.unique().tolist()) == {-0.5, 0.0, 1.0}
    for prototype, child in enumerate(head.grouping.prototype_child.tolist()):
        group, slot = head.grouping.prototype_group[prototype], head.grouping.prototype_slot[prototype]
        column = weight[group, :, slot]
        assert column[head.grouping.node_member[child]] == 1.0
        siblings = head.taxonomy.children_of(int(head.taxonomy.parent[child]))
        assert (column == -0.5).sum() == len(siblings) - 1
    assert head.taxonomy.groups[0].parent == ROOT


def test_inner_nodes_get_more_prototypes_with_the_root_of_their_leaves_up_to_a_limit() -> None:
    taxonomy = Taxonomy.from_paths(["A/1", "A/2", "A/3", "A/4", "A/5", "B/1", "B/2", "Q"])
    counts: dict[str, int] = {}
    for node in prototype_children(taxonomy, "hierarchical", 3, inner_factor=2):
        counts[taxonomy.names[node]] = counts.get(taxonomy.names[node], 0) + 1
    # ⌈√5⌉ = 3 is over the limit, ⌈√2⌉ = 2 is not, a leaf counts once.
    assert (counts["A"], counts["B"], counts["Q"], counts["A/1"]) == (6, 6, 3, 3)
    assert {prototype_children(taxonomy, "flat", 3, inner_factor=4).count(leaf) for leaf in taxonomy.leaves} == {3}


def test_many_prototypes_of_which_few_match_are_worth_as_much_as_few_that_match() -> None:
    """A has twice as many prototypes as Q, and half of them match; the others stand where the similarity is 0."""
    taxonomy = Taxonomy.from_paths(["A/1", "A/2", "A/3", "A/4", "Q"])
    owners = prototype_children(taxonomy, "hierarchical", 3, inner_factor=2)
    a, q = taxonomy.index["A"], taxonomy.index["Q"]
    found: dict[int, float] = {}
    for matching in (a, q):
        head = PrototypeHead(taxonomy, owners, 4, similarity=Similarity(zero=2.0)).eval()
        distance = torch.full((1, len(owners)), 2.0)
        distance[0, [place for place, owner in enumerate(owners) if owner == matching][:3]] = 0.3
        with torch.inference_mode():
            output = head.classify(distance, torch.zeros_like(distance, dtype=torch.int64))
        found[matching] = float(output.conditional[0, matching])
    assert found[a] == pytest.approx(found[q], abs=1e-6) and found[a] < -1e-6


def test_a_child_with_more_prototypes_does_not_start_ahead() -> None:
    taxonomy = Taxonomy.from_paths(["A/1", "A/2", "A/3", "A/4", "Q"])
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 3, inner_factor=2), 4).eval()
    alike = torch.full((1, len(head.grouping.prototype_child)), 0.5)
    with torch.inference_mode():
        output = head.classify(alike, torch.zeros_like(alike, dtype=torch.int64))
    for name in ("A", "Q"):
        assert float(output.log_probability[0, taxonomy.index[name]].exp()) == pytest.approx(0.5, abs=1e-6)


def test_a_similarity_without_references_can_not_be_recentred() -> None:
    head = random_head("flat")
    with pytest.raises(InputError, match="log1p has no reference distances; use negative-distance"):
        head.recentre_distances(torch.ones(len(head.prototypes)))


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_a_prototypes_own_weight_is_less_the_mean_over_the_members_of_its_group(kind: Kind) -> None:
    head = random_head(kind, SIMILARITIES[0])
    weight, grouping = head.effective_weight().detach().double().numpy(), head.grouping
    for prototype, found in enumerate(head.centred_own_weight().tolist()):
        group, slot = int(grouping.prototype_group[prototype]), int(grouping.prototype_slot[prototype])
        members = grouping.member_node[group].numpy()
        column = weight[group, members < len(head.taxonomy.nodes), slot]
        own = weight[group, np.flatnonzero(members == int(grouping.prototype_child[prototype]))[0], slot]
        assert found == pytest.approx(own - column.mean(), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
def test_switching_off_takes_exactly_the_contributions_away_and_leaves_the_priors(seed: int, share: float) -> None:
    head = head_over_random_tree(seed)
    off = np.flatnonzero(np.random.default_rng(seed).random(len(head.prototypes)) < share)
    latent = random_latent(head, 4, 2, 3)
    loops, prior = expected(head, latent), head.prior().detach().numpy()
    centred, grouping = head.centred_weight().detach().double().numpy(), head.grouping
    logit = loops.logit.copy()
    for prototype in off.tolist():
        group, slot = int(grouping.prototype_group[prototype]), int(grouping.prototype_slot[prototype])
        unusual = loops.similarity[:, prototype] - float(head.usual[prototype])
        for member, node in enumerate(head.taxonomy.groups[group].children):
            logit[:, node] -= centred[group, member, slot] * unusual
    head.switch_off(off.tolist())
    with torch.inference_mode():
        found = explain(head, latent, 1)
        trained = head(latent)
    assert found.logit.numpy() == pytest.approx(logit, abs=1e-4)
    assert found.log_probability.numpy() == pytest.approx(trained.log_probability.numpy(), abs=1e-4)
    assert head.prior().detach().numpy() == pytest.approx(prior)
    head.switch_off([])
    with torch.inference_mode():
        assert explain(head, latent, 1).logit.numpy() == pytest.approx(loops.logit, abs=1e-4)

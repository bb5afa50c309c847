"""A routed head against the full one: wherever its certificate holds, the same answer."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protoserve.errors import InputError
from protoserve.graph_signature import Explanation, RoutedSearch
from protoserve.networks.fused_head import explain
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.routed_head import MARGIN, RoutedHead
from protoserve.networks.similarity import Similarity, SimilarityForm
from protoserve.taxonomy import Taxonomy
from tests.protoserve.networks.heads import head_over_random_tree, random_latent

Answer: TypeAlias = Explanation[torch.Tensor, torch.Tensor]
Search: TypeAlias = RoutedSearch[torch.Tensor, torch.Tensor, torch.Tensor]


def even_head(seed: int, form: SimilarityForm, unit_length: bool) -> PrototypeHead:
    """Three levels, every group with prototypes enough for any evidence."""
    generator = np.random.default_rng(seed)
    tree = Taxonomy.from_paths(
        [f"{a}/{b}/{c}" for a in range(3) for b in range(int(generator.integers(2, 4))) for c in range(2 + (a + b) % 3)]
    )
    torch.manual_seed(seed)
    children = prototype_children(tree, "hierarchical", 3)
    head = PrototypeHead(tree, children, 16, similarity=Similarity(form, 0.1, 2.0), unit_length=unit_length)
    with torch.no_grad():
        head.weight.copy_(5.0 * torch.randn_like(head.weight))
        head.temperature.uniform_(0.5, 2.0)
    return head.eval()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 4),
    form=st.sampled_from(["log1p", "log-ratio", "cosine", "negative-distance"]),
    unit_length=st.booleans(),
    epsilon=st.sampled_from([1e-3, 0.1]),
    dimensions=st.sampled_from([6, 96]),
    trunk=st.sampled_from([0, 0, 12, 1024]),
)
def test_where_the_certificate_holds_the_answer_is_the_full_heads(
    seed: int, width: int, form: SimilarityForm, unit_length: bool, epsilon: float, dimensions: int, trunk: int
) -> None:
    similarity = Similarity(form, epsilon)
    head = head_over_random_tree(seed, similarity, unit_length=unit_length, dimensions=dimensions)
    assert_same_where_certain(head, width, trunk)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 4),
    form=st.sampled_from(["log1p", "cosine", "negative-distance"]),
    trunk=st.sampled_from([0, 12, 1024]),
)
def test_where_the_certificate_holds_the_answer_is_the_full_heads_with_prototypes_off(
    seed: int, width: int, form: SimilarityForm, trunk: int
) -> None:
    head = head_over_random_tree(seed, Similarity(form, 0.1))
    head.switch_off(np.flatnonzero(np.random.default_rng(seed).random(len(head.prototypes)) < 0.5).tolist())
    assert_same_where_certain(head, width, trunk)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 4),
    form=st.sampled_from(["log1p", "log-ratio", "cosine", "negative-distance"]),
    unit_length=st.booleans(),
    trunk=st.sampled_from([0, 40, 1024]),
)
def test_where_the_certificate_holds_and_no_evidence_is_missing_the_answer_is_the_full_heads(
    seed: int, width: int, form: SimilarityForm, unit_length: bool, trunk: int
) -> None:
    head = even_head(seed, form, unit_length)
    assert head.grouping.has_full_evidence(4) and RoutedHead(head, 4, 1).full_evidence
    assert_same_where_certain(head, width, trunk)


def assert_same_where_certain(head: PrototypeHead, width: int, trunk: int) -> None:
    latent, top_k = random_latent(head, 7, 3, 4), min(4, head.top_k_limit)
    with torch.inference_mode():
        full, found = explain(head, latent, top_k), RoutedHead(head, top_k, width, trunk)(latent)
    leaf = full.log_probability[:, head.grouping.leaf_node]
    runner_up = leaf.topk(2, dim=1).values
    # Two leaves as probable as each other within rounding: either may win.
    clear = (runner_up[:, 0] - runner_up[:, 1]) > 1e-4
    for image in torch.nonzero(found.certain & clear)[:, 0].tolist():
        path = full.path[image]
        assert found.path[image].tolist() == path.tolist()
        on_path = path >= 0
        nodes = path[on_path]
        expected = full.log_probability[image, nodes]
        torch.testing.assert_close(found.path_log_probability[image, on_path], expected, atol=1e-4, rtol=0)
        assert not found.path_log_probability[image, ~on_path].any()
        torch.testing.assert_close(found.path_logit[image, on_path], full.logit[image, nodes], atol=1e-3, rtol=1e-4)
        assert not found.path_logit[image, ~on_path].any()
        for name in ("contribution", "similarity", "weight", "map"):
            expected = getattr(full, f"evidence_{name}")[image]
            given = getattr(found, f"evidence_{name}")[image]
            torch.testing.assert_close(given, expected, atol=1e-3, rtol=1e-4, msg=name)
        for name in ("contribution", "similarity", "weight"):
            expected, given = getattr(full, f"against_{name}")[image], getattr(found, f"against_{name}")[image]
            torch.testing.assert_close(given, expected, atol=1e-3, rtol=1e-4, msg=name)
        positive = found.positive_contribution[image]
        torch.testing.assert_close(positive, full.positive_contribution[image], atol=1e-3, rtol=1e-4)
        for name in ("evidence_prototype", "evidence_cell", "against_prototype", "against_cell"):
            assert getattr(found, name)[image].tolist() == getattr(full, name)[image].tolist(), name
        assert_same_search(head, found, full, image)


def assert_same_search(head: PrototypeHead, found: Search, full: Answer, image: int) -> None:
    """The similarities beside the path, the probabilities of all scored nodes, and the bounds of all others."""
    node, nodes = found.scored_node[image], len(head.taxonomy.nodes)
    scored = node[node < nodes]
    assert len(scored.unique()) == len(scored)
    expected = full.log_probability[image]
    values = found.scored_log_probability[image, node < nodes]
    torch.testing.assert_close(values, expected[scored], atol=1e-4, rtol=1e-4)
    others = np.setdiff1d(np.arange(nodes), scored.numpy())
    for level, bound in enumerate(found.unscored_bound[image].tolist()):
        unscored = [number for number in others if len(head.taxonomy.nodes[number]) == level + 1]
        assert bound > -1e29 or not unscored
        assert all(float(expected[number]) <= bound + 1e-4 for number in unscored)
    for level, number in enumerate(full.path[image].tolist()):
        group = int(head.grouping.node_group[number]) if number >= 0 else len(head.taxonomy.groups)
        own = torch.nonzero(head.grouping.prototype_group == group)[:, 0]
        similarity = found.path_similarity[image, level, : len(own)]
        torch.testing.assert_close(similarity, full.similarity[image, own], atol=1e-3, rtol=1e-4)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 3), dimensions=st.sampled_from([6, 96]))
def test_a_certificate_is_given_only_where_no_other_leaf_can_win(seed: int, width: int, dimensions: int) -> None:
    """Against a search of its own over the full head's probabilities, picture by picture."""
    head = head_over_random_tree(seed, dimensions=dimensions)
    latent, tree = random_latent(head, 7, 3, 4), head.taxonomy
    with torch.inference_mode():
        # All levels are routed but the first that has siblings.
        chances, found = head(latent).log_probability.numpy(), RoutedHead(head, 1, width, trunk=0)(latent)
    compared = 0
    for image, chance in enumerate(chances):
        level, best, bound = [*tree.children_of(-1)], -np.inf, -np.inf
        while len(level) == 1:  # a single root is no choice, and the level below it is scored whole as well
            level = [*tree.children_of(level[0])]
        while level:
            best = max([best, *(chance[node] for node in level if not tree.children_of(node))])
            inner = sorted((node for node in level if tree.children_of(node)), key=lambda node: -chance[node])
            bound = max([bound, *(chance[node] for node in inner[width:])])
            level = [child for node in inner[:width] for child in tree.children_of(node)]
        if abs(best - bound) > 10 * MARGIN:
            assert bool(found.certain[image]) == (best > bound)
            compared += 1
        if found.certain[image]:
            assert chance[list(tree.leaves)].max() == pytest.approx(float(best), abs=1e-6)
    assert compared


def test_with_all_nodes_expanded_everything_is_certain() -> None:
    head = head_over_random_tree(3)
    latent = random_latent(head, 7, 3, 4)
    with torch.inference_mode():
        found = RoutedHead(head, 1, len(head.taxonomy.nodes), trunk=0)(latent)
    assert found.certain.all()
    assert torch.equal(found.path, explain(head, latent, 1).path)


def test_flat_heads_and_widths_below_1_are_refused() -> None:
    tree = Taxonomy.from_paths(["A/a", "A/b", "B"])
    flat = PrototypeHead(tree, prototype_children(tree, "flat", 1), 4, kind="flat")
    with pytest.raises(InputError, match="only a hierarchical head"):
        RoutedHead(flat, 1, 2)
    with pytest.raises(InputError, match="at least 1 node of every level, not 0"):
        RoutedHead(PrototypeHead(tree, prototype_children(tree, "hierarchical", 1), 4), 1, 0)

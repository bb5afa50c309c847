"""A routed head against the full one: wherever its certificate holds, the same answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protoserve.errors import InputError
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.routing import MARGIN, RoutedHead
from protoserve.networks.similarity import on_sphere
from protoserve.taxonomy import Taxonomy

CELLS = 12


def random_tree(generator):
    """Uneven, with only children and leaves at depths 1 to 4."""
    leaves = []

    def grow(path, depth):
        for child in range(int(generator.integers(1 if depth else 2, 5))):
            here = (*path, str(child))
            if depth < 3 and generator.random() < 0.7 - 0.1 * depth:
                grow(here, depth + 1)
            else:
                leaves.append(here)

    grow((), 0)
    return Taxonomy.from_paths(leaves)


def random_head(seed, form="log1p", sphere=False, sharpness=1.0):
    generator = np.random.default_rng(seed)
    tree = random_tree(generator)
    torch.manual_seed(seed)
    head = PrototypeHead(
        tree, prototype_children(tree, "hierarchical", 2, inner_factor=3), 6, form=form, sphere=sphere, epsilon=1e-3
    )
    with torch.no_grad():
        head.weight.copy_(sharpness * torch.randn_like(head.weight))
        head.temperature.uniform_(0.5, 2.0)
        head.centre.fill_(0.3)
    latent = torch.rand(7, 6, 3, 4)
    return head.eval(), on_sphere(latent - 0.5, 1) if head.sphere else latent


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 4),
    form=st.sampled_from(["log1p", "log-ratio", "cosine", "negative-distance"]),
)
def test_where_the_certificate_holds_the_answer_is_the_full_heads(seed, width, form):
    head, latent = random_head(seed, form)
    top_k = min(4, head.top_k_limit)
    with torch.inference_mode():
        full, routed = head.explain(latent, top_k), RoutedHead(head, top_k, width)(latent)
    leaf = full.log_probability[:, head.leaf_node]
    runner_up = leaf.topk(2, dim=1).values
    # Two leaves as probable as each other within rounding: either may win.
    clear = (runner_up[:, 0] - runner_up[:, 1]) > 1e-4
    for image in torch.nonzero(routed.certain & clear)[:, 0].tolist():
        path = full.path[image]
        assert routed.path[image].tolist() == path.tolist()
        on_path = path >= 0
        nodes = path[on_path]
        expected = full.log_probability[image, nodes]
        torch.testing.assert_close(routed.path_log_probability[image, on_path], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(routed.path_logit[image, on_path], full.logit[image, nodes], atol=1e-3, rtol=1e-4)
        for name in ("evidence_contribution", "evidence_similarity", "evidence_map"):
            torch.testing.assert_close(
                getattr(routed, name)[image], getattr(full, name)[image], atol=1e-3, rtol=1e-4, msg=name
            )
        assert routed.evidence_prototype[image].tolist() == full.evidence_prototype[image].tolist()
        assert routed.evidence_cell[image].tolist() == full.evidence_cell[image].tolist()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_certificate_is_given_only_where_no_other_leaf_can_win(seed):
    """By brute force: the best leaf found beats every node whose children were not scored."""
    head, latent = random_head(seed)
    tree = head.taxonomy
    with torch.inference_mode():
        full, routed = head(latent), RoutedHead(head, 1, 1)(latent)
    for image in range(len(latent)):
        scored = set(routed.scored_node[image].tolist()) - {-1}
        left_out = [n for n in scored if len(tree.children_of(n)) and not set(tree.children_of(n)) & scored]
        best = (
            max(float(full.log_probability[image, n]) for n in scored if n in tree.leaves)
            if (scored & set(tree.leaves))
            else -np.inf
        )
        bound = max((float(full.log_probability[image, n]) for n in left_out), default=-np.inf)
        if abs(best - bound) > 10 * MARGIN:
            assert bool(routed.certain[image]) == (best > bound)
        values = dict(zip(routed.scored_node[image].tolist(), routed.scored_log_probability[image], strict=True))
        for node in scored:
            assert float(values[node]) == pytest.approx(float(full.log_probability[image, node]), abs=1e-3)


def test_with_all_nodes_expanded_everything_is_certain():
    head, latent = random_head(3)
    with torch.inference_mode():
        routed = RoutedHead(head, 1, len(head.taxonomy.nodes))(latent)
    assert routed.certain.all()
    assert torch.equal(routed.path, head.explain(latent, 1).path)


def test_what_cannot_be_routed_is_said():
    tree = Taxonomy.from_paths(["A/a", "A/b", "B"])
    flat = PrototypeHead(tree, prototype_children(tree, "flat", 1), 4, kind="flat")
    with pytest.raises(InputError, match="only a hierarchical head"):
        RoutedHead(flat, 1, 2)
    with pytest.raises(InputError, match="at least 1 node of every level, not 0"):
        RoutedHead(PrototypeHead(tree, prototype_children(tree, "hierarchical", 1), 4), 1, 0)

"""The prototype head against independent computations in double precision and by hand."""

import math

import numpy as np
import pytest
import torch

from protoserve.networks.fused_head import FusedHead, explain
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity, to_unit_length
from protoserve.taxonomy import ROOT, Taxonomy

UNEVEN = ("A/B/C/x", "A/B/C/y", "A/B/z", "A/w", "Q", "R/S/only", "R/T/u", "R/T/v")


def random_head(kind, leaves=UNEVEN, per_child=3, dimensions=8, seed=0, unit_length=False, **formula):
    taxonomy = Taxonomy.from_paths(leaves)
    torch.manual_seed(seed)
    head = PrototypeHead(
        taxonomy,
        prototype_children(taxonomy, kind, per_child),
        dimensions,
        kind=kind,
        similarity=Similarity(**formula),
        unit_length=unit_length,
    )
    with torch.no_grad():
        head.weight += 0.2 * torch.randn_like(head.weight)
    return head.eval()


def formula(head, d):
    epsilon = head.similarity.epsilon
    return np.log(1 + 1 / (d + epsilon)) if head.similarity.form == "log1p" else np.log((d + 1) / (d + epsilon))


def reference(head, latent):
    """Everything by loops in float64: distances, cells, logits and log-probabilities of every node."""
    taxonomy = head.taxonomy
    z = latent.double().flatten(2).numpy()
    prototypes = head.prototypes.detach().double().numpy()
    if head.similarity.form == "cosine":
        lengths = np.linalg.norm(prototypes, axis=1)[None, :, None] * np.linalg.norm(z, axis=1)[:, None]
        cosine = np.einsum("pd,ndc->npc", prototypes, z) / lengths
        cell, s = cosine.argmax(2), cosine.max(2)
        d = 2 - 2 * s
    else:
        distance = ((z[:, None] - prototypes[None, :, :, None]) ** 2).sum(2)
        d, cell = distance.min(2), distance.argmin(2)
        s = formula(head, d) - (0 if head.similarity.zero is None else formula(head, head.similarity.zero))
    weight = head.effective_weight().detach().double().numpy()
    logit = np.zeros((len(z), len(taxonomy.nodes)))
    groups = [g.children for g in taxonomy.groups] if head.kind == "hierarchical" else [taxonomy.leaves]
    for number, members in enumerate(groups):
        owners = [p for p, child in enumerate(head.grouping.prototype_child.tolist()) if child in members]
        for place, node in enumerate(members):
            logit[:, node] = s[:, owners] @ weight[number, place, : len(owners)]
    log_probability = np.zeros_like(logit)
    if head.kind == "hierarchical":
        for node, path in enumerate(taxonomy.nodes):
            for depth in range(1, len(path) + 1):
                ancestor = taxonomy.index["/".join(path[:depth])]
                siblings = list(taxonomy.children_of(int(taxonomy.parent[ancestor])))
                log_probability[:, node] += logit[:, ancestor] - np.log(np.exp(logit[:, siblings]).sum(1))
                if len(siblings) == 1:
                    log_probability[:, node] -= logit[:, ancestor] - np.log(np.exp(logit[:, siblings]).sum(1))
    else:
        leaves = list(taxonomy.leaves)
        p = np.exp(logit[:, leaves]) / np.exp(logit[:, leaves]).sum(1, keepdims=True)
        log_probability = np.log(p @ taxonomy.leaves_below.T)
    return d, cell, s, logit, log_probability


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize(("form", "zero"), [("log1p", None), ("log-ratio", None), ("cosine", None), ("log1p", 0.5)])
def test_everything_agrees_with_loops_in_double_precision(kind: str, form: str, zero: float | None) -> None:
    head = random_head(kind, form=form, epsilon=1e-3, zero=zero)
    latent = torch.rand(5, 8, 3, 4)
    if form == "cosine":
        latent = to_unit_length(latent - 0.5, 1)
    d, cell, s, logit, log_probability = reference(head, latent)
    with torch.inference_mode():
        output, explained = head(latent), explain(head, latent, 4)
    np.testing.assert_allclose(output.distance, d, atol=1e-6)
    np.testing.assert_array_equal(output.cell, cell)
    np.testing.assert_allclose(output.similarity, s, atol=1e-5)
    np.testing.assert_allclose(explained.logit, logit, atol=1e-4)
    np.testing.assert_allclose(output.log_probability, log_probability, atol=1e-4)


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


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_levels_sum_to_one_and_never_contradict(kind: str) -> None:
    head = random_head(kind)
    taxonomy = head.taxonomy
    with torch.inference_mode():
        explained = explain(head, torch.rand(16, 8, 4, 4), 3)
    probability = explained.log_probability.double().exp().numpy()
    for level in range(taxonomy.depth):
        nodes = np.unique(taxonomy.level_of_leaf[:, level])
        np.testing.assert_allclose(probability[:, nodes].sum(1), 1.0, atol=1e-5)
    for path, row in zip(explained.path.tolist(), probability, strict=True):
        leaf = max(taxonomy.leaves, key=lambda node: row[node])
        assert [node for node in path if node >= 0] == [n for n in taxonomy.path_at_level[leaf].tolist() if n >= 0]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_evidence_is_the_largest_contributions_in_order_and_all_of_them_sum_to_the_logit(kind: str) -> None:
    head = random_head(kind)
    latent = torch.rand(6, 8, 3, 5)
    with torch.inference_mode():
        explained = explain(head, latent, head.top_k_limit)
    _, cell, s, logit, _ = reference(head, latent)
    shown = explained.evidence_contribution.double()
    for image in range(6):
        for level, node in enumerate(explained.path[image].tolist()):
            prototypes = explained.evidence_prototype[image, level]
            if node < 0 or not (prototypes >= 0).any():
                assert shown[image, level].abs().sum() == 0
                continue
            assert float(shown[image, level].sum()) == pytest.approx(logit[image, node], abs=1e-4)
            real = prototypes[prototypes >= 0]
            values = shown[image, level][prototypes >= 0]
            assert (values[:-1] >= values[1:]).all()
            assert len(set(real.tolist())) == len(real)
            np.testing.assert_allclose(
                explained.evidence_similarity[image, level][: len(real)], s[image, real], atol=1e-4
            )
            np.testing.assert_array_equal(explained.evidence_cell[image, level][: len(real)], cell[image, real])


def test_a_node_without_a_head_has_no_evidence() -> None:
    head = random_head("hierarchical")
    only = head.taxonomy.index["R/S/only"]
    with torch.no_grad():
        head.weight[:] = 0.0
        # Push every decision towards the only child's branch.
        for name in ("R", "R/S"):
            node = head.taxonomy.index[name]
            head.weight[head.grouping.node_group[node], head.grouping.node_member[node]] = 5.0
        explained = explain(head, torch.rand(1, 8, 2, 2), 4)
    assert explained.path[0].tolist()[2] == only
    assert (explained.evidence_prototype[0, 2] == -1).all()
    assert float(explained.logit[0, only]) == 0.0


def test_the_similarity_of_an_exact_match_survives_cancellation() -> None:
    """‖z‖² − 2zp + ‖p‖² alone is off by as much as ε here; the second look at the winning cell is not."""
    head = random_head("flat", dimensions=128, epsilon=1e-4)
    torch.manual_seed(1)
    latent = torch.rand(4, 128, 7, 7)
    with torch.no_grad():
        for number in range(len(head.prototypes)):
            head.prototypes[number] = latent[number % 4, :, number % 7, number % 5]
        found = head(latent).similarity.amax(0)
    assert torch.all((found - math.log(1 + 1e4)).abs() < 1e-3)


@pytest.mark.parametrize("zero", [None, 0.7])
@pytest.mark.parametrize(
    ("epsilon", "unit_length", "from_product"), [(1e-4, False, False), (0.1, False, True), (0.1, True, True)]
)
def test_maps_hold_the_similarity_at_every_cell(
    zero: float | None, epsilon: float, unit_length: bool, from_product: bool
) -> None:
    """Both from differences and, where that is exact enough, from the product; for every piece of evidence."""
    head = random_head("hierarchical", zero=zero, epsilon=epsilon, unit_length=unit_length)
    assert (FusedHead(head, 2).radius == 0.0) == from_product
    latent = torch.rand(3, 8, 4, 6)
    latent = to_unit_length(latent, 1) if unit_length else latent
    with torch.inference_mode():
        explained = explain(head, latent, 2)
        vectors = head.vectors().double()
    shown = torch.nonzero(explained.evidence_prototype >= 0).tolist()
    assert len({int(explained.evidence_prototype[*place]) for place in shown}) > 1
    for place in shown:
        vector = vectors[explained.evidence_prototype[*place]]
        distance = (latent[place[0]].double() - vector[:, None, None]).square().sum(0)
        expected = formula(head, distance.numpy()) - (0 if zero is None else formula(head, zero))
        np.testing.assert_allclose(explained.evidence_map[*place], expected, atol=1e-4)


def test_weights_start_as_published_and_never_leave_their_group() -> None:
    head = random_head("hierarchical")
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
    counts = {}
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
    found = {}
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

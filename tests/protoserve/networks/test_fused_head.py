"""The head in the form that is exported: its outputs, evidence and maps against loops in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protoserve.graph_signature import MISSING_RANK, named_arrays
from protoserve.networks.fused_head import FusedHead, explain
from protoserve.networks.similarity import Similarity
from protoserve.taxonomy import Kind
from tests.protoserve.networks.heads import SIMILARITIES, expected, random_head, random_latent, similarity_at

KINDS = ("hierarchical", "flat")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("similarity", SIMILARITIES, ids=str)
def test_everything_agrees_with_loops_in_double_precision(kind: Kind, similarity: Similarity) -> None:
    head = random_head(kind, similarity)
    latent = random_latent(head, 5, 3, 4)
    wanted = expected(head, latent)
    with torch.inference_mode():
        found = explain(head, latent, 4)
    np.testing.assert_allclose(found.similarity, wanted.similarity, atol=1e-5)
    np.testing.assert_array_equal(found.cell, wanted.cell)
    np.testing.assert_allclose(found.logit, wanted.logit, atol=1e-4)
    np.testing.assert_allclose(found.log_probability, wanted.log_probability, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_sum_to_one_and_never_contradict(kind: Kind) -> None:
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
        assert path == taxonomy.path_at_level[leaf].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("similarity", [Similarity(), Similarity("negative-distance")], ids=str)
def test_evidence_for_and_against_is_in_order_and_sums_with_the_prior_to_the_logit(
    kind: Kind, similarity: Similarity
) -> None:
    head = random_head(kind, similarity)
    latent = torch.rand(6, 8, 3, 5)
    with torch.inference_mode():
        explained, prior = explain(head, latent, head.top_k_limit), head.prior().double()
    wanted = expected(head, latent)
    usual = head.usual.double().numpy()
    for image in range(6):
        for level, node in enumerate(explained.path[image].tolist()):
            prototypes = explained.evidence_prototype[image, level]
            shown = explained.evidence_contribution[image, level].double()
            positive = float(explained.positive_contribution[image, level])
            assert positive == pytest.approx(float(shown.clamp_min(0).sum()), abs=1e-4)
            if node < 0 or not (prototypes >= 0).any():
                assert not shown.any()
                continue
            assert float(shown.sum() + prior[node]) == pytest.approx(wanted.logit[image, node], abs=1e-4)
            real = prototypes[prototypes >= 0]
            values = shown[prototypes >= 0]
            unusual = explained.evidence_similarity[image, level][: len(real)] - head.usual[real]
            order = torch.where(unusual > 0, values, MISSING_RANK * values)
            assert (order[:-1] >= order[1:]).all()
            assert len(set(real.tolist())) == len(real)
            similarities = explained.evidence_similarity[image, level][: len(real)]
            np.testing.assert_allclose(similarities, wanted.similarity[image, real], atol=1e-4)
            weights = explained.evidence_weight[image, level][: len(real)].numpy()
            np.testing.assert_allclose(weights * (similarities.numpy() - usual[real]), values, atol=1e-5)
            cells = explained.evidence_cell[image, level][: len(real)]
            np.testing.assert_array_equal(cells, wanted.cell[image, real])
            # With all prototypes shown, the evidence against is the same list from its other end.
            for name in ("prototype", "similarity", "weight", "contribution", "cell"):
                supporting = getattr(explained, f"evidence_{name}")[image, level][: len(real)]
                against = getattr(explained, f"against_{name}")[image, level]
                assert against[: len(real)].tolist() == supporting.flip(0).tolist()
                assert set(against[len(real) :].tolist()) <= {-1 if name in ("prototype", "cell") else 0.0}


def test_what_is_found_comes_before_what_is_missing() -> None:
    """A sibling's prototype that the picture lacks speaks for a node, too, but its best cell shows nothing."""
    head, latent = random_head("flat"), torch.rand(6, 8, 3, 5)
    with torch.no_grad():
        head.usual.copy_(explain(head, latent, 1).similarity.mean(0))
        explained = explain(head, latent, head.top_k_limit)
    found_first = 0
    for image, level in (explained.path >= 0).nonzero().tolist():
        prototypes = explained.evidence_prototype[image, level]
        unusual = explained.evidence_similarity[image, level] - head.usual[prototypes]
        values = explained.evidence_contribution[image, level]
        found, missing = ((unusual > 0) & (values > 0)).nonzero(), ((unusual < 0) & (values > 0)).nonzero()
        if not len(found) or not len(missing):
            continue
        ahead = values[found[-1]] > MISSING_RANK * values[missing].max()
        assert not ahead or found.max() < missing.min()
        found_first += bool(ahead) and bool(values[missing].max() > values[found].min())
    assert found_first >= 2


def test_a_prototype_that_counts_for_all_siblings_alike_contributes_nothing() -> None:
    head = random_head("flat")
    with torch.no_grad():
        head.weight[0, :, 4] = 7.5
        explained = explain(head, torch.rand(3, 8, 2, 2), head.top_k_limit)
    occurs = explained.evidence_prototype == 4
    assert int(occurs.sum()) >= 3
    assert float(explained.evidence_contribution[occurs].abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_similarities_are_usual_the_prior_is_the_logit_and_nothing_contributes(kind: Kind) -> None:
    head = random_head(kind)
    latent = torch.rand(1, 8, 2, 2)
    with torch.inference_mode():
        head.usual.copy_(head(latent).similarity[0])
        explained = explain(head, latent, 3)
        prior = head.prior()
    np.testing.assert_allclose(prior, explained.logit[0], atol=1e-4)
    assert float(explained.evidence_contribution.abs().max()) < 1e-5
    assert float(explained.logit.abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_centring_changes_no_probability(kind: Kind) -> None:
    """Also where all members of a group share weights a hundred times as large as what tells them apart."""
    head = random_head(kind)
    latent = torch.rand(5, 8, 3, 3)
    with torch.inference_mode():
        head.weight.add_(100.0 * torch.rand_like(head.weight[:, :1]))
        trained, explained = head.double()(latent.double()).log_probability, explain(head, latent.double(), 3)
    np.testing.assert_allclose(explained.log_probability, trained, atol=1e-6)


def test_a_node_without_a_head_has_no_evidence() -> None:
    head = random_head()
    only = head.taxonomy.index["R/S/only"]
    with torch.no_grad():
        head.weight[:] = 0.0
        # Push every decision towards the only child's branch.
        for name in ("R", "R/S"):
            node = head.taxonomy.index[name]
            head.weight[head.grouping.node_group[node], head.grouping.node_member[node]] = 5.0
        explained = explain(head, torch.rand(1, 8, 2, 2), 4)
    assert explained.path[0].tolist()[2] == only
    assert float(explained.logit[0, only]) == 0.0
    assert (explained.evidence_prototype[0, 2] == -1).all() and (explained.evidence_cell[0, 2] == -1).all()
    for name in ("similarity", "weight", "contribution", "map"):
        assert not getattr(explained, f"evidence_{name}")[0, 2].any(), name


@pytest.mark.parametrize("zero", [None, 0.7])
@pytest.mark.parametrize(
    ("epsilon", "unit_length", "from_product"), [(1e-4, False, False), (0.1, False, True), (0.1, True, True)]
)
def test_maps_hold_the_similarity_at_every_cell(
    zero: float | None, epsilon: float, unit_length: bool, from_product: bool
) -> None:
    """Both from differences and, where that is exact enough, from the product; for every piece of evidence."""
    head = random_head(similarity=Similarity(epsilon=epsilon, zero=zero), unit_length=unit_length)
    assert (FusedHead(head, 2).radius == 0.0) == from_product
    latent = random_latent(head, 3, 4, 6)
    with torch.inference_mode():
        explained = explain(head, latent, 2)
        vectors = head.vectors().double()
    evidence = torch.nonzero(explained.evidence_prototype >= 0).tolist()
    assert len({int(explained.evidence_prototype[*position]) for position in evidence}) > 1
    for position in evidence:
        vector = vectors[explained.evidence_prototype[*position]]
        distance = (latent[position[0]].double() - vector[:, None, None]).square().sum(0)
        wanted = similarity_at(head.similarity, distance.numpy())
        np.testing.assert_allclose(explained.evidence_map[*position], wanted, atol=1e-4)


def test_references_are_part_of_every_map() -> None:
    head = random_head("flat", Similarity("negative-distance"))
    latent = random_latent(head, 2, 2, 3)
    assert head.reference is not None
    with torch.inference_mode():
        explained = explain(head, latent, 3)
    deepest = (explained.path >= 0).sum(1) - 1
    for image, level in enumerate(deepest.tolist()):
        for rank, prototype in enumerate(explained.evidence_prototype[image, level].tolist()):
            vector = head.prototypes[prototype].detach().double()
            distance = (latent[image].double() - vector[:, None, None]).square().sum(0)
            wanted = float(head.reference[prototype]) - distance.numpy()
            np.testing.assert_allclose(explained.evidence_map[image, level, rank], wanted, atol=1e-4)


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=str)
def test_a_fixed_number_of_refinements_answers_as_a_counted_one(similarity: Similarity) -> None:
    """Also where every cell lies on a prototype, so that as many distances as possible need refinement."""
    head = random_head("hierarchical", similarity, dimensions=32)
    latent = random_latent(head, 2, 3, 4)
    with torch.no_grad():
        cells = latent.flatten(2).transpose(1, 2).flatten(0, 1)
        head.prototypes.copy_(cells[torch.arange(len(head.prototypes)) % len(cells)])
        wanted = expected(head, latent)
        counted, fixed = FusedHead(head, 2), FusedHead(head, 2, cells=12)
        assert counted.refinements is None and fixed.refinements is not None
        outputs = named_arrays(counted(latent))
        for name, values in named_arrays(fixed(latent)).items():
            torch.testing.assert_close(values, outputs[name], msg=name)
    np.testing.assert_allclose(outputs["similarity"], wanted.similarity, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_gets_the_same_answer_in_any_batch(kind: Kind) -> None:
    head = random_head(kind)
    latent = random_latent(head, 4, 3, 3)
    fused = FusedHead(head, 3)
    with torch.inference_mode():
        together = named_arrays(fused(latent))
        for image in range(4):
            for name, values in named_arrays(fused(latent[image : image + 1])).items():
                torch.testing.assert_close(values[0], together[name][image], msg=name)


@pytest.mark.parametrize("similarity", [Similarity(), Similarity("negative-distance")], ids=str)
def test_later_changes_of_the_head_change_nothing(similarity: Similarity) -> None:
    head = random_head("hierarchical", similarity)
    latent = random_latent(head, 3, 2, 2)
    fused = FusedHead(head, 2)
    with torch.inference_mode():
        before = named_arrays(fused(latent))
        for tensor in (head.prototypes, head.weight, head.temperature, head.centre, head.usual, head.reference):
            if tensor is not None:
                tensor.copy_(torch.rand_like(tensor) + 1)
        after = named_arrays(fused(latent))
    for name, values in before.items():
        assert torch.equal(after[name], values), name

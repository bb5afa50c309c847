"""How many pieces prove a node: against exhaustive search on small heads, and the bounds against the formulas."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protoserve.bundle.manifest import GraphRecord
from protoserve.inference.last_layers import GroupLayer
from protoserve.inference.sufficient import similarity_bounds, sufficient_pieces
from protoserve.networks.similarity import Similarity, SimilarityForm


def exhaustive(
    layer: GroupLayer,
    row: int,
    similarity: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    limit: int,
) -> int | None:
    """The smallest set whose complement may take every corner of its bounds without a sibling catching up."""
    count = len(similarity)
    corners = np.array(np.meshgrid(*[(0, 1)] * count, indexing="ij")).reshape(count, -1).T
    for size in range(min(limit, count) + 1):
        for known in combinations(range(count), size):
            cases = np.where(corners == 1, high, low)
            cases[:, list(known)] = similarity[list(known)]
            logits = layer.prior + (cases - layer.usual) @ layer.weight.T
            rivals = np.delete(logits, row, axis=1)
            if (logits[:, [row]] > rivals).all():
                return size
    return None


@given(seed=st.integers(0, 100_000), members=st.integers(2, 4), count=st.integers(1, 7), limit=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_the_number_is_that_of_exhaustive_search(seed: int, members: int, count: int, limit: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(size=(members, count))
    weight[random.random((members, count)) < 0.2] = 0.0
    layer = GroupLayer(np.arange(count), weight - weight.mean(axis=0), random.uniform(0, 2, count))
    low, high = random.uniform(0.0, 0.3, count), np.full(count, 3.0)
    # Pictures for which the node wins clearly, so that few pieces may do.
    similarity = np.where(random.random(count) < 0.7, np.where(weight[0] > 0, high, low), random.uniform(0.3, 3, count))
    found = sufficient_pieces(layer, 0, similarity, low, high, limit)
    assert found == exhaustive(layer, 0, similarity, low, high, limit)


def test_one_prototype_may_be_enough() -> None:
    layer = GroupLayer(np.arange(2), np.array([[2.0, 0.1], [-2.0, -0.1]]), np.array([1.0, 1.0]))
    bounds = np.zeros(2), np.full(2, 4.0)
    assert sufficient_pieces(layer, 0, np.array([3.0, 1.0]), *bounds, 5) == 1
    assert sufficient_pieces(layer, 0, np.array([3.0, 1.0]), *bounds, 0) is None
    assert sufficient_pieces(layer, 1, np.array([3.0, 1.0]), *bounds, 5) is None


def test_without_bounds_every_prototype_that_matters_must_be_known() -> None:
    weight = np.array([[1.0, 1.0, 0.5], [-1.0, -1.0, 0.5]])
    layer = GroupLayer(np.arange(3), weight - weight.mean(axis=0), np.zeros(3))
    bounds = np.full(3, -np.inf), np.full(3, np.inf)
    assert sufficient_pieces(layer, 0, np.array([1.0, 2.0, 5.0]), *bounds, 3) == 2
    assert sufficient_pieces(layer, 0, np.array([1.0, 2.0, 5.0]), *bounds, 1) is None


def test_what_is_always_so_needs_no_evidence() -> None:
    layer = GroupLayer(np.arange(1), np.array([[0.5], [-0.5]]), np.array([2.0]))
    assert sufficient_pieces(layer, 0, np.array([2.0]), np.array([0.5]), np.array([4.0]), 5) == 0


@pytest.mark.parametrize("zero", [None, 2.0])
@pytest.mark.parametrize("form", ["log1p", "log-ratio", "cosine"])
def test_bounds_are_the_formulas_values_at_the_ends_of_its_distances(form: SimilarityForm, zero: float | None) -> None:
    formula = Similarity(form, epsilon=1e-3, zero=zero)
    graph = GraphRecord(rows=1, columns=1, prototypes=1, top_k=1, similarity=form, epsilon=1e-3, zero=zero)
    low, high = similarity_bounds(graph)
    assert high == pytest.approx(formula.at(0.0))
    assert low == pytest.approx(formula.at(4.0 if form == "cosine" else 1e15))


def test_the_negative_distance_has_no_bounds() -> None:
    graph = GraphRecord(rows=1, columns=1, prototypes=1, top_k=1, similarity="negative-distance", epsilon=0.0)
    assert similarity_bounds(graph) == (-math.inf, math.inf)


def test_prototypes_that_weigh_the_same_for_all_prove_nothing() -> None:
    layer = GroupLayer(np.arange(2), np.zeros((2, 2)), np.ones(2))
    assert sufficient_pieces(layer, 0, np.ones(2), np.zeros(2), np.full(2, 3.0), 2) is None

"""The refit of a last layer finds the minimum of its objective, as an independent gradient in numpy says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.extending.refitting import Rows, image_weights, refit


@given(seed=st.integers(0, 1000), members=st.integers(2, 4), ridge=st.sampled_from([0.001, 0.1, 1.0]))
@settings(max_examples=10, deadline=None)
def test_the_gradient_is_zero_at_the_result(seed: int, members: int, ridge: float) -> None:
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(members, 5))
    similarity = generator.normal(1.0, 1.0, (30, 5)).astype(np.float32)
    target, weight = generator.integers(0, members, 30), generator.uniform(0.5, 2.0, 30)
    layer = refit(torch.from_numpy(start), Rows(similarity, target), weight, ridge).numpy()
    exact, share = similarity.astype(np.float64), weight / weight.sum()
    logits = exact @ layer.T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    scale = (share[:, None] * exact**2).sum(axis=0)
    gradient = ((odds - np.eye(members)[target]) * share[:, None]).T @ exact + 2 * ridge * scale * (layer - start)
    assert np.abs(gradient).max() < 1e-5


def test_a_strong_ridge_keeps_the_layer() -> None:
    start = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    rows = Rows(np.ones((4, 2), dtype=np.float32), np.array([0, 0, 1, 1]))
    assert refit(start, rows, np.ones(4), ridge=1e9) == pytest.approx(start, abs=1e-6)


def test_only_balanced_members_with_few_images_weigh_more() -> None:
    target = np.array([0] * 10 + [1] * 2 + [2] * 6)
    weight = image_weights(target, np.array([False, True, True]), balance=1.0)
    assert weight.tolist() == [1.0] * 10 + [3.0] * 2 + [1.0] * 6
    assert image_weights(target, np.array([True, False, False]), balance=1.0).tolist() == [1.0] * 18

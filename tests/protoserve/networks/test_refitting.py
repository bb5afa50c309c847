"""The refit of a last layer finds the minimum of its objective, as an independent gradient in numpy says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protoserve.networks.refitting import refit_layer


@given(seed=st.integers(0, 1000), members=st.integers(2, 4), ridge=st.sampled_from([0.001, 0.1, 1.0]))
@settings(max_examples=10, deadline=None)
def test_the_gradient_is_zero_at_the_result(seed: int, members: int, ridge: float) -> None:
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(members, 5))
    similarity = generator.normal(1.0, 1.0, (30, 5)).astype(np.float32)
    target, weight = generator.integers(0, members, 30), generator.uniform(0.5, 2.0, 30)
    exact, share = similarity.astype(np.float64), weight / weight.sum()
    layer = refit_layer(
        torch.from_numpy(start),
        torch.from_numpy(similarity),
        torch.from_numpy(target),
        ridge,
        share=torch.from_numpy(share),
    ).numpy()
    logits = exact @ layer.T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    scale = (share[:, None] * exact**2).sum(axis=0)
    gradient = ((odds - np.eye(members)[target]) * share[:, None]).T @ exact + 2 * ridge * scale * (layer - start)
    assert np.abs(gradient).max() < 1e-5


def test_a_strong_ridge_keeps_the_layer() -> None:
    start = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
    assert refit_layer(start, torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), 1e9) == pytest.approx(start, abs=1e-6)


def test_columns_that_are_not_free_stay_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((3, 4), generator=generator)
    similarity, target = torch.randn((20, 4), generator=generator), torch.arange(20) % 3
    free = torch.tensor([True, False, True, False])
    layer = refit_layer(start, similarity, target, 0.01, free=free)
    assert torch.equal(layer[:, ~free], start[:, ~free]) and not torch.equal(layer[:, free], start[:, free])
    # Of a member whose row alone is free, everything but the row stays, and its row is at the minimum.
    row = torch.zeros((3, 4), dtype=torch.bool)
    row[1] = True
    layer = refit_layer(start, similarity, target, 0.01, free=row)
    assert torch.equal(layer[~row], start[~row])
    probability = (similarity.double() @ layer.double().T).softmax(1)
    gradient = (probability[:, 1] - (target == 1).double()) @ similarity.double() / 20
    gradient += 2 * 0.01 * similarity.double().square().mean(0) * (layer - start)[1]
    assert gradient.abs().max() < 1e-5

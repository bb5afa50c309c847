"""The similarities against the papers' formulas in double precision, gradients against finite differences."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from protoserve.networks.similarity import Similarity, on_sphere, similarity

FORMULAS = {
    "log1p": lambda d, epsilon: math.log(1 + 1 / (d + epsilon)),
    "log-ratio": lambda d, epsilon: math.log((d + 1) / (d + epsilon)),
    "cosine": lambda d, epsilon: 1 - d / 2,
    "negative-distance": lambda d, epsilon: -d,
}


def test_every_form_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(get_args(Similarity))


@pytest.mark.parametrize("form", get_args(Similarity))
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
def test_values_and_slopes(form: Similarity, epsilon: float) -> None:
    formula = FORMULAS[form]
    distances = [0.0, 1e-6, 1e-3, 0.1, 1.0, 2.5, 4.0] + ([] if form == "cosine" else [30.0, 128.0])
    given = torch.tensor(distances, requires_grad=True)
    found = similarity(given, form, epsilon)
    expected = [formula(distance, epsilon) for distance in given.detach().double().tolist()]
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-6)
    (slopes,) = torch.autograd.grad(found.sum(), given)
    for distance, slope in zip(given.detach().double().tolist(), slopes.tolist(), strict=True):
        step = 1e-5 * (distance + epsilon)
        difference = (formula(distance + step, epsilon) - formula(distance - step, epsilon)) / (2 * step)
        assert slope == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("form", get_args(Similarity))
def test_nearer_is_more_similar(form: Similarity) -> None:
    distances = torch.linspace(0, 4, 200, dtype=torch.float64)
    assert (similarity(distances, form, 1e-4).diff() < 0).all()


def test_on_the_sphere_the_squared_distance_is_two_minus_two_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    z, p = (torch.randn(50, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    cosine = (z * p).sum(1) / (z.norm(dim=1) * p.norm(dim=1))
    distance = (on_sphere(z, 1) - on_sphere(p, 1)).square().sum(1)
    torch.testing.assert_close(distance, 2 - 2 * cosine)
    torch.testing.assert_close(similarity(distance, "cosine", 0.1), cosine)

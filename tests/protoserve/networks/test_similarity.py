"""The similarities against the papers' formulas in double precision, gradients against finite differences."""

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch

from protoserve.errors import InputError
from protoserve.networks.similarity import Similarity, SimilarityForm, to_unit_length

FORMULAS: dict[str, Callable[[float, float], float]] = {
    "log1p": lambda d, epsilon: math.log(1 + 1 / (d + epsilon)),
    "log-ratio": lambda d, epsilon: math.log((d + 1) / (d + epsilon)),
    "cosine": lambda d, epsilon: 1 - d / 2,
    "negative-distance": lambda d, epsilon: -d,
}


def test_every_form_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(get_args(SimilarityForm))


@pytest.mark.parametrize("form", get_args(SimilarityForm))
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
def test_values_and_slopes(form: SimilarityForm, epsilon: float) -> None:
    formula = FORMULAS[form]
    distances = [0.0, 1e-6, 1e-3, 0.1, 1.0, 2.5, 4.0] + ([] if form == "cosine" else [30.0, 128.0])
    given = torch.tensor(distances, requires_grad=True)
    found = Similarity(form, epsilon).of_distance(given)
    expected = [formula(distance, epsilon) for distance in given.detach().double().tolist()]
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-6)
    (slopes,) = torch.autograd.grad(found.sum(), given)
    for distance, slope in zip(given.detach().double().tolist(), slopes.tolist(), strict=True):
        step = 1e-5 * (distance + epsilon)
        difference = (formula(distance + step, epsilon) - formula(distance - step, epsilon)) / (2 * step)
        assert slope == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("form", get_args(SimilarityForm))
def test_nearer_is_more_similar(form: SimilarityForm) -> None:
    distances = torch.linspace(0, 4, 200, dtype=torch.float64)
    assert (Similarity(form).of_distance(distances).diff() < 0).all()


def test_at_unit_length_the_squared_distance_is_two_minus_two_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    z, p = (torch.randn(50, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    cosine = (z * p).sum(1) / (z.norm(dim=1) * p.norm(dim=1))
    distance = (to_unit_length(z, 1) - to_unit_length(p, 1)).square().sum(1)
    torch.testing.assert_close(distance, 2 - 2 * cosine)
    torch.testing.assert_close(Similarity("cosine").of_distance(distance), cosine)


@pytest.mark.parametrize("form", get_args(SimilarityForm))
@pytest.mark.parametrize("zero", [None, 1.5])
def test_one_number_and_a_tensor_have_the_same_similarity(form: SimilarityForm, zero: float | None) -> None:
    similarity = Similarity(form, 0.1, zero)
    distances = [0.0, 0.3, 1.5, 4.0]
    found = similarity.of_distance(torch.tensor(distances, dtype=torch.float64))
    assert found.tolist() == pytest.approx([similarity.at(distance) for distance in distances], abs=1e-12)


@pytest.mark.parametrize("form", get_args(SimilarityForm))
def test_the_similarity_is_0_at_the_distance_zero_names(form: SimilarityForm) -> None:
    found = Similarity(form, 0.1, zero=1.5).of_distance(torch.tensor([1.5, 1.4, 1.6]))
    assert float(found[0]) == pytest.approx(0, abs=1e-6) and found[1] > 0 > found[2]


@pytest.mark.parametrize("form", get_args(SimilarityForm))
@pytest.mark.parametrize("zero", [None, 2.0])
def test_the_product_of_unit_vectors_gives_the_similarity_of_their_distance(
    form: SimilarityForm, zero: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    z, p = (to_unit_length(torch.randn(50, 7, generator=generator, dtype=torch.float64), 1) for _ in range(2))
    similarity = Similarity(form, 0.1, zero)
    reference = torch.linspace(-1, 1, 50, dtype=torch.float64)
    expected = similarity.of_distance((z - p).square().sum(1))
    product = (z * similarity.product_factor * p).sum(1)
    torch.testing.assert_close(similarity.of_product(product), expected)
    torch.testing.assert_close(similarity.of_product(product, reference), expected + reference)


def test_a_reference_is_added() -> None:
    distance, reference = torch.tensor([[1.0, 4.0], [0.0, 2.0]]), torch.tensor([3.0, 5.0])
    found = Similarity("negative-distance").of_distance(distance, reference)
    assert found.tolist() == [[2.0, 1.0], [3.0, 3.0]]


def test_an_unknown_form_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="no similarity 'log1'; did you mean 'log1p'"):
        Similarity("log1")  # type: ignore[arg-type]


def test_a_logarithm_needs_a_positive_epsilon() -> None:
    with pytest.raises(InputError, match=r"epsilon is 0\.0, but the similarity log-ratio needs one above 0"):
        Similarity("log-ratio", 0.0)
    assert Similarity("negative-distance", 0.0).at(2.0) == -2.0

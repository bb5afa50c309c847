"""Every term of the autoencoder's loss against sums written out in double precision, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protoserve.networks.head import PrototypeHead
from protoserve.networks.similarity import Similarity
from protoserve.taxonomy import Taxonomy
from training.sections.network import AutoencoderConfig
from training.stages.autoencoder_losses import autoencoder_objective

Array = NDArray[np.float64]
LEAVES, PICTURES, PROTOTYPES, LENGTH = 4, 5, 6, 3
TARGET = np.array([0, 3, 1, 1, 2])
PUBLISHED = AutoencoderConfig()


def distances(codes: Array, prototypes: Array) -> list[list[float]]:
    return [[float(((code - prototype) ** 2).sum()) for prototype in prototypes] for code in codes]


# From codes, prototypes, weight [leaves, prototypes], pictures and drawn pictures to one number.
def cross_entropy(codes: Array, prototypes: Array, weight: Array, planes: Array, drawn: Array) -> float:
    total = 0.0
    for row, target in zip(distances(codes, prototypes), TARGET, strict=True):
        logits = [
            sum(float(weight[leaf, place]) * distance for place, distance in enumerate(row)) for leaf in range(LEAVES)
        ]
        total -= logits[target] - math.log(sum(math.exp(logit) for logit in logits))
    return total / PICTURES


def reconstruction(codes: Array, prototypes: Array, weight: Array, planes: Array, drawn: Array) -> float:
    pairs = zip(planes.ravel().tolist(), drawn.ravel().tolist(), strict=True)
    return math.fsum((value - other) ** 2 for value, other in pairs) / PICTURES


def prototype_near_code(codes: Array, prototypes: Array, weight: Array, planes: Array, drawn: Array) -> float:
    rows = distances(codes, prototypes)
    return sum(min(row[place] for row in rows) for place in range(PROTOTYPES)) / PROTOTYPES


def code_near_prototype(codes: Array, prototypes: Array, weight: Array, planes: Array, drawn: Array) -> float:
    return sum(min(row) for row in distances(codes, prototypes)) / PICTURES


TERMS: dict[str, Callable[[Array, Array, Array, Array, Array], float]] = {
    "cross_entropy": cross_entropy,
    "reconstruction": reconstruction,
    "prototype_near_code": prototype_near_code,
    "code_near_prototype": code_near_prototype,
}


def values() -> tuple[Array, Array, Array, Array, Array]:
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(PICTURES, LENGTH)),
        generator.normal(size=(PROTOTYPES, LENGTH)),
        generator.normal(size=(LEAVES, PROTOTYPES)),
        generator.random((PICTURES, 2, 3, 2)),
        generator.random((PICTURES, 2, 3, 2)),
    )


def terms_of(inputs: tuple[torch.Tensor, ...], weights: AutoencoderConfig = PUBLISHED) -> dict[str, torch.Tensor]:
    """The terms through the head that training uses, with its reversed signs."""
    codes, prototypes, weight, planes, drawn = inputs
    taxonomy = Taxonomy.from_paths([str(leaf) for leaf in range(LEAVES)])
    similarity = Similarity("negative-distance")
    head = PrototypeHead(taxonomy, [0, 0, 1, 1, 2, 3], LENGTH, kind="flat", similarity=similarity).double().train()
    state = {"prototypes": prototypes, "weight": -weight[None]}
    output = torch.func.functional_call(head, state, codes[:, :, None, None])
    target = torch.from_numpy(TARGET)
    return autoencoder_objective(output.group_logits[:, 0], target, output.distance, planes, drawn, weights)


def close_difference(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """The gradient by central differences."""
    result = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[place] += step
        below[place] -= step
        result[place] = (function(above) - function(below)) / (2 * step)
    return result


@pytest.mark.parametrize("term", TERMS)
def test_a_term_and_its_gradients_are_those_of_the_paper(term: str) -> None:
    given = values()
    inputs = tuple(torch.from_numpy(array).requires_grad_() for array in given)
    found = terms_of(inputs)[term]
    assert found.item() == pytest.approx(TERMS[term](*given), rel=1e-10)
    gradients = torch.autograd.grad(found, inputs, allow_unused=True)
    for number, gradient in enumerate(gradients):

        def of_input(array: Array, number: int = number) -> float:
            inputs = [*given[:number], array, *given[number + 1 :]]
            return TERMS[term](*inputs)

        expected = close_difference(of_input, given[number])
        actual = np.zeros_like(expected) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(actual, expected, atol=2e-8, err_msg=f"{term}, input {number}")


def test_the_total_weighs_the_terms() -> None:
    given = values()
    inputs = tuple(torch.from_numpy(array) for array in given)
    found = terms_of(
        inputs,
        AutoencoderConfig(cross_entropy=20.0, reconstruction=0.5, prototype_near_code=3.0, code_near_prototype=7.0),
    )
    expected = sum(
        weight * function(*given) for weight, function in zip((20.0, 0.5, 3.0, 7.0), TERMS.values(), strict=True)
    )
    assert found["total"].item() == pytest.approx(expected, rel=1e-10)


def test_the_published_weights_are_the_default() -> None:
    weights = (
        PUBLISHED.cross_entropy,
        PUBLISHED.reconstruction,
        PUBLISHED.prototype_near_code,
        PUBLISHED.code_near_prototype,
    )
    assert weights == (20.0, 1.0, 1.0, 1.0)

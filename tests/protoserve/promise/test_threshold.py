"""The threshold of the promise: exact p-values, the guarantee on random draws, and what too few pictures give."""

from __future__ import annotations

import doctest
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protoserve.promise import threshold as module
from protoserve.promise.threshold import (
    GRID,
    Walks,
    answer_levels,
    binomial_tail,
    least_images,
    promised_threshold,
)


def drawn(generator: np.random.Generator, images: int, ease: float) -> Walks:
    """Pictures of a three-level tree whose conditional probabilities are stated too high; `ease` in log-odds."""
    sharpness = 1.3
    true: NDArray[np.float64] = 1 / (
        1 + np.exp(-generator.normal(ease + np.array([2.0, 0.5, 0.0]), [1.5, 2.0, 2.0], (images, 3)))
    )
    right = np.cumprod(generator.random((images, 3)) < true, axis=1).sum(axis=1)
    stated = true**sharpness / (true**sharpness + (1 - true) ** sharpness)
    return Walks(np.cumprod(stated, axis=1).astype(np.float64), np.full(images, 3), right)


def precision_at(walks: Walks, threshold: float) -> float:
    level = answer_levels(walks.probability, walks.known, threshold)
    return float((level <= walks.right)[level > 0].mean())


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_tail_is_that_of_the_binomial_distribution(successes: int, trials: int, rate: float) -> None:
    successes = min(successes, trials)
    found = binomial_tail(np.array([successes]), np.array([trials]), rate)[0]
    exact, total = Fraction(rate), Fraction(0)
    for count in range(successes + 1):
        total += math.comb(trials, count) * exact**count * (1 - exact) ** (trials - count)
    assert found == pytest.approx(float(total), rel=1e-9, abs=1e-12)


def test_answer_is_the_deepest_known_node_above_the_threshold() -> None:
    probability = np.array([[0.99, 0.9, 0.5], [0.99, 0.9, 0.5], [0.6, 0.5, 0.4], [0.99, 0.95, 0.0]])
    known = np.array([3, 1, 3, 2])
    assert answer_levels(probability, known, 0.8).tolist() == [2, 1, 0, 2]
    assert answer_levels(probability, known, np.array([0.95, 0.45])).tolist() == [[1, 3], [1, 1], [0, 2], [2, 2]]


@pytest.mark.parametrize(("images", "precision", "ease"), [(120, 0.9, 2.0), (400, 0.95, 2.0), (1500, 0.99, 3.5)])
def test_promise_holds_on_nearly_all_draws(images: int, precision: float, ease: float) -> None:
    # Independent of the code: the precision is that of 50,000 other pictures.
    generator = np.random.default_rng(images)
    world = drawn(generator, 50_000, ease)
    true = {value: precision_at(world, value) for value in GRID.tolist() if (world.probability[:, 0] >= value).any()}
    found = [promised_threshold(drawn(generator, images, ease), precision, 0.95).value for _ in range(300)]
    broken = sum(value is not None and true[value] < precision for value in found)
    # 300 draws at 5 % give at most 25 with probability 0.99.
    assert broken <= 25
    assert sum(value is not None for value in found) > 100


def test_promise_is_kept_where_the_network_is_sure_of_what_is_wrong() -> None:
    # Every answer above 0.95 is wrong half the time, so a threshold at the stated precision itself would lie.
    generator = np.random.default_rng(0)
    probability = np.full((2000, 1), 0.99)
    walks = Walks(probability, np.ones(2000, dtype=np.int64), generator.integers(0, 2, 2000))
    assert promised_threshold(walks, 0.9, 0.95).value is None


@pytest.mark.parametrize("precision", [0.9, 0.95, 0.99])
def test_too_few_pictures_promise_nothing(precision: float) -> None:
    least = least_images(precision, 0.95)

    def perfect(images: int) -> Walks:
        return Walks(np.full((images, 1), 1.0), np.ones(images, dtype=np.int64), np.ones(images, dtype=np.int64))

    few, enough = (
        promised_threshold(perfect(least - 1), precision, 0.95),
        promised_threshold(perfect(least), precision, 0.95),
    )
    assert few.value is None and few.too_few
    assert enough.value == GRID[-1] and not enough.too_few and enough.answered == least


def test_certain_levels_do_not_count_as_answers() -> None:
    # Level 1 is always right, and level 2 nearly never: without `certain_levels`, level 1 would hide that.
    images = 500
    probability: NDArray[np.float64] = np.stack([np.ones(images), np.full(images, 0.6)], axis=1)
    right = np.ones(images, dtype=np.int64)
    walks = Walks(probability, np.full(images, 2), right)
    assert (promised_threshold(walks, 0.9, 0.95).value or 0) > 0.6
    assert promised_threshold(walks, 0.9, 0.95, certain_levels=1).value is None

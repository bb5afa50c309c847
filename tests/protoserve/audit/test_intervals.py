"""Bootstrap intervals, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.audit.intervals import compare, compare_known


def test_the_interval_of_two_values_is_worked_by_hand() -> None:
    # A resample of 0 and 1 has the mean 0, 1/2 and 1 with probability 1/4, 1/2 and 1/4.
    found = compare(np.array([0.0, 1.0]), np.array([0.0, 0.0]), seed=0)
    assert (found.measured.mean, found.measured.low, found.measured.high) == (0.5, 0.0, 1.0)
    assert (found.baseline.low, found.baseline.high, found.baseline.images) == (0.0, 0.0, 2)


def test_the_difference_is_paired() -> None:
    values = np.array([0.0, 10.0, 100.0, 1000.0])
    found = compare(values + 1, values, seed=0)
    assert (found.difference.low, found.difference.high) == pytest.approx((1.0, 1.0))
    assert found.measured.low < 100 < found.measured.high


def test_the_interval_has_the_width_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = compare(values, np.zeros(400), seed=1).measured
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=9)
    first, again, other = (compare(values, -values, seed) for seed in (3, 3, 4))
    assert first == again and first.measured.mean == other.measured.mean and first != other


def test_unknown_images_are_left_out_of_both() -> None:
    found = compare_known(np.array([1.0, np.nan, 3.0, 4.0]), np.array([0.0, 5.0, np.nan, 2.0]), seed=0)
    assert found is not None and found.measured.images == 2
    assert (found.measured.mean, found.baseline.mean) == (2.5, 1.0)
    assert compare_known(np.array([np.nan]), np.array([1.0]), seed=0) is None


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        compare(np.array([]), np.array([]), seed=0)

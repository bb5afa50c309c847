"""Temperatures against a search by hand, and what they must not change."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.scores import expected_calibration_error
from protoserve.temperatures import Temperatures, fit_temperatures, shrinkage_path, tolerated

Array = NDArray[np.float64]


def log_softmax(logits: Array, axis: int) -> Array:
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=axis, keepdims=True))


def drawn(images: int, members: int, temperature: float, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """Logits, and labels drawn from their softmax at that temperature."""
    generator = np.random.default_rng(seed)
    logits = 4.0 * generator.normal(size=(images, members))
    chances = np.exp(log_softmax(logits / temperature, axis=1))
    labels = np.array([generator.choice(members, p=row) for row in chances])
    return logits, labels


def loss(temperature: float, logits: Array, labels: NDArray[np.int64]) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def best(logits: Array, labels: NDArray[np.int64]) -> float:
    """By thirds: the loss has one minimum."""
    low, high = -3.0, 3.0
    for _ in range(60):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        if loss(np.exp(first), logits, labels) < loss(np.exp(second), logits, labels):
            high = second
        else:
            low = first
    return float(np.exp((low + high) / 2))


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_a_group_alone_gets_its_own_best_temperature(true: float) -> None:
    logits, labels = drawn(3000, 5, true, seed=1)
    found = fit_temperatures([logits], [labels])
    assert found.groups[0] == pytest.approx(best(logits, labels), rel=0.02)
    assert found.groups[0] == pytest.approx(true, rel=0.1)


def test_large_groups_keep_their_own_temperature_and_small_ones_shrink_to_the_common_one() -> None:
    sure, unsure = drawn(2000, 4, 0.5, seed=2), drawn(2000, 4, 3.0, seed=3)
    few = drawn(4, 4, 3.0, seed=4)
    found = fit_temperatures([sure[0], unsure[0], few[0]], [sure[1], unsure[1], few[1]])
    assert found.groups[0] == pytest.approx(best(*sure), rel=0.05)
    assert found.groups[1] == pytest.approx(best(*unsure), rel=0.05)
    assert abs(np.log(found.groups[2] / found.common)) < abs(np.log(best(*few) / found.common))


def test_groups_alike_share_one_temperature() -> None:
    groups = [drawn(40, 3, 2.0, seed=seed) for seed in range(12)]
    logits, labels = [pair[0] for pair in groups], [pair[1] for pair in groups]
    found = fit_temperatures(logits, labels)
    own = [best(*pair) for pair in groups]
    assert np.std(np.log(found.groups)) < 0.5 * np.std(np.log(own))
    together = best(np.concatenate(logits), np.concatenate(labels))
    assert found.common == pytest.approx(together, rel=0.15)


def test_a_group_without_images_gets_the_common_temperature() -> None:
    logits, labels = drawn(1000, 4, 2.0, seed=5)
    found = fit_temperatures([logits, np.zeros((0, 3))], [labels, np.zeros(0, dtype=np.int64)])
    assert found.groups[1] == pytest.approx(found.common, rel=0.05)
    assert found.common == pytest.approx(2.0, rel=0.5)


def test_images_that_are_all_right_do_not_make_it_certain() -> None:
    logits = np.tile([3.0, 0.0, 0.0], (5, 1))
    found = fit_temperatures([logits], [np.zeros(5, dtype=np.int64)])
    assert 0.1 < found.groups[0] < 1.0


def test_calibration_lowers_the_error_on_other_images_and_changes_no_choice() -> None:
    logits, labels = drawn(4000, 6, 2.0, seed=6)
    found = fit_temperatures([logits[:2000]], [labels[:2000]]).groups[0]
    before, after = (np.exp(log_softmax(logits[2000:] / t, axis=1)) for t in (1.0, found))
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    right = before.argmax(axis=1) == labels[2000:]
    error = [expected_calibration_error(chances.max(axis=1), right) for chances in (before, after)]
    assert error[0] > 0.1
    assert error[1] < 0.04


def test_enormous_logits_stay_finite() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4]])
    found = fit_temperatures([logits], [np.array([0, 1, 1])])
    assert np.isfinite(found.groups).all()


def test_the_shrinkage_path_leads_from_each_groups_temperature_to_1() -> None:
    found = Temperatures(np.array([0.5, 2.0, 1.0]), 0.81, 0.3)
    tried = shrinkage_path(found)
    np.testing.assert_allclose(tried[0], found.groups)
    np.testing.assert_allclose(tried[1], np.sqrt(found.groups * 0.81))
    np.testing.assert_allclose(tried[2], 0.81)
    np.testing.assert_allclose(tried[3], 0.9)
    np.testing.assert_allclose(tried[4], 1.0)


def test_calibration_tolerates_the_loss_of_one_image_of_a_small_selection() -> None:
    for images in (1, 10, 96, 100):
        for right in range(1, images + 1):
            assert (right - 1) / images >= right / images - tolerated(images)
            assert images < 3 or right < 2 or (right - 2) / images < right / images - tolerated(images)
    # Of many images, one in a hundred as ever.
    assert tolerated(1000) == pytest.approx(0.01)

"""Deletion and insertion of evidence boxes, worked by hand on the toy model."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.audit.necessity import area_under_curve, box_effects
from protoserve.audit.regions import STEPS
from protoserve.audit.subject import pieces_of
from protoserve.bundle.truth_card import BoxEffect
from tests.protoserve.audit.toys import ToyEngine, sample, subject, with_shifted_cells

STRENGTH = 155 / 255


def log_red(redness: float, greenness: float = 0.0) -> float:
    """The log-probability of Red from the two similarities that matter."""
    logit = 0.5 + 4 * (redness - 0.25) - 4 * (greenness - 0.25)
    return -float(np.logaddexp(0, -2 * logit))


def effects(engine: ToyEngine | None = None, count: int = 12) -> tuple[list[BoxEffect], list[BoxEffect]]:
    toy = subject(engine)
    pictures = sample(count)
    outputs = toy.run(pictures.arrays)
    return box_effects(toy, pictures, outputs, pieces_of(outputs), seed=0)


def test_the_effect_of_the_first_box_is_worked_by_hand() -> None:
    # Two pictures: Red with its square at cell 1, Green with its square at cell 6.
    necessity, sufficiency = effects(count=2)
    by_fill = {effect.fill: effect for effect in necessity}
    assert [effect.level for effect in necessity] == [1, 1, 1] and by_fill["mean"].steps == list(STEPS)
    # The mean colour has 155/16 more red than green, rounded to 110 − 100 of 255; so it does for Green, which has the
    # prior −0.5, so that its log-probability is that of Red with 1 less.
    rest = 10 / 255
    red = log_red(STRENGTH) - log_red(rest)
    green = log_red(STRENGTH - 0.25) - log_red(rest - 0.25)
    assert by_fill["mean"].evidence[0] == pytest.approx((red + green) / 2, abs=1e-5)
    assert by_fill["mean"].area[0] == 1 / 16
    # Swapped with the other picture at the same place, the square is gone: grey.
    red = log_red(STRENGTH) - log_red(0.0)
    green = log_red(STRENGTH - 0.25) - log_red(-0.25)
    assert by_fill["swap"].evidence[0] == pytest.approx((red + green) / 2, abs=1e-5)
    # Only the square of Red kept in the picture of Green, whose own square stays: both, instead of greenness alone.
    kept = {effect.fill: effect for effect in sufficiency}
    red = log_red(STRENGTH, STRENGTH) - log_red(0.0, STRENGTH)
    green = log_red(STRENGTH - 0.25, STRENGTH) - log_red(-0.25, STRENGTH)
    assert kept["swap"].evidence[0] == pytest.approx((red + green) / 2, abs=1e-5)


def test_true_boxes_cost_more_than_random_and_least_contributing_ones() -> None:
    necessity, sufficiency = effects()
    for effect in (*necessity, *sufficiency):
        # A blur leaves most of a square this small.
        least_gain = 0.005 if effect.fill == "blur" else 0.1
        assert effect.over_random.difference.low > least_gain, effect
        assert effect.first.difference.low > least_gain
        assert effect.over_random.measured.images == 12
    # Beside the evidence, least contributes the always-on prototype, at cell 0, where the square of one of the 12
    # pictures lies, a Green one.
    mean = next(effect for effect in necessity if effect.fill == "mean")
    green = log_red(STRENGTH - 0.25) - log_red(10 / 255 - 0.25)
    assert mean.least[0] == pytest.approx(green / 12, abs=1e-5) and mean.over_least.difference.low > 0.1


def test_shifted_boxes_do_not_cost_more_than_random_ones() -> None:
    necessity, sufficiency = effects(ToyEngine(stated=with_shifted_cells))
    for effect in (*necessity, *sufficiency):
        assert effect.over_random.difference.low <= 0, effect


def test_random_boxes_have_the_mean_effect_of_all_places() -> None:
    # A shifted box covers on average 1/16 of the square's pixels, so on average the loss is small.
    necessity, _ = effects(count=40)
    mean = next(effect for effect in necessity if effect.fill == "mean")
    assert 0 <= mean.random[0] < 0.15 * mean.evidence[0]


def test_the_area_under_a_curve_is_a_mean_over_boxes() -> None:
    # Steps 1, 2, 3, 5, 10 with effects 1, 2, 3, 5, 10: the triangle 10 · 10 / 2, divided by 10 boxes.
    assert area_under_curve(np.array([[1.0, 2.0, 3.0, 5.0, 10.0]])).tolist() == [5.0]
    # A constant effect from the first box on: half of the first box is missing.
    assert area_under_curve(np.ones((1, 5))).tolist() == [0.95]

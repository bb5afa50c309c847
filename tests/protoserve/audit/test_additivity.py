"""Sums that hold, and two that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protoserve.audit.additivity import additivity
from protoserve.inference.engine import Outputs
from tests.protoserve.audit.toys import ToyEngine, sample, subject, with_shuffled_contributions


def test_true_sums_have_no_gap_and_another_pictures_have() -> None:
    toy = subject()
    found = additivity(toy, toy.run(sample().arrays), seed=0)
    assert found.largest_gap < 1e-6 and found.largest_piece_gap < 1e-6
    # The logit is 0.5 + 4 · (0.608 − 0.25) + 4 · 0.25 = 2.93; that of the next, Green picture is for Red
    # 0.5 − 4 · 0.25 − 4 · (0.608 − 0.25) = −1.93.
    strength = 155 / 255
    logit = 0.5 + 4 * (strength - 0.25) + 1
    assert found.tolerance == pytest.approx(1e-4 * logit, rel=1e-5)
    assert found.gap is not None
    red, green = 8 * (strength - 0.25) + 2, 8 * (strength - 0.25) + 2
    assert found.gap.baseline.mean == pytest.approx((red + green) / 2, rel=1e-5)


def test_a_logit_that_is_more_than_the_sum_is_found() -> None:
    def more(outputs: Outputs) -> Outputs:
        return replace(outputs, logit=outputs.logit + 0.5)

    toy = subject(ToyEngine(stated=more))
    assert additivity(toy, toy.run(sample().arrays), seed=0).largest_gap == pytest.approx(0.5, abs=1e-5)


def test_contributions_of_other_prototypes_are_found() -> None:
    toy = subject(ToyEngine(stated=with_shuffled_contributions))
    found = additivity(toy, toy.run(sample().arrays), seed=0)
    assert found.largest_gap < 1e-6
    assert found.largest_piece_gap > 1

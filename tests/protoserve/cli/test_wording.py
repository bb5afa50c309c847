"""The words for sums and evidence, against sums by hand."""

from __future__ import annotations

import doctest

import pytest

from protoserve.cli import wording
from protoserve.cli.wording import LevelSum, level_sum, sum_line, terms
from protoserve.schema import Evidence, Level


def piece(contribution: float, similarity: float = 2.0, usual: float = 1.0, weight: float = 1.0) -> Evidence:
    return Evidence(
        prototype=0,
        similarity=similarity,
        usual=usual,
        weight=weight,
        contribution=contribution,
        box=(0, 0, 1, 1),
    )


def level(**fields: object) -> Level:
    return Level.model_validate(
        {"level": 1, "node": "Ape", "label": "Ape", "probability": 0.5, "conditional": 0.5, **fields}
    )


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(wording).failed == 0


def test_what_is_shown_adds_up_to_the_last_digit() -> None:
    # Each is rounded up; the parts as they are would sum to 3.008 and the rounded ones to 3.03.
    evidence, against = [piece(0.666), piece(0.336)], [piece(-0.118)]
    shown = level_sum(level(logit=3.008, prior=0.108, rest=2.016, evidence=evidence, against=against))
    assert shown == LevelSum(logit=3.01, prior=0.11, supporting=1.01, opposing=-0.12, rest=2.01)
    assert shown.prior + shown.supporting + shown.opposing + shown.rest == pytest.approx(shown.logit, abs=1e-9)


def test_the_line_names_every_part_and_the_share() -> None:
    line = sum_line(
        level(logit=1.92, prior=-0.02, rest=1.3, evidence_share=0.44, evidence=[piece(1.16)], against=[piece(-0.52)])
    )
    assert line == "score 1.92 = -0.02 prior, +1.16 for, -0.52 against, +1.30 rest; 44% of what speaks for it is shown"


def test_a_share_that_nobody_knows_is_not_shown() -> None:
    line = sum_line(level(logit=1.0, prior=0.0, rest=1.0, evidence_share=None))
    assert line == "score 1.00 = +0.00 prior, +0.00 for, +0.00 against, +1.00 rest"


def test_a_node_without_a_logit_has_no_sum() -> None:
    assert level_sum(level(forced=True)) is None and sum_line(level(forced=True)) == ""


@pytest.mark.parametrize("value", [-0.0, -0.001])
def test_no_zero_has_a_sign(value: float) -> None:
    assert "-0.00" not in sum_line(level(logit=value, prior=value, rest=value))


def test_the_factors_show_what_is_usual() -> None:
    assert terms(piece(0.0, similarity=-0.5, usual=-0.75, weight=-0.25)) == "-0.25 × (-0.50 + 0.75)"

"""Concentration, telling prototypes, boxes and duplicates, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.audit.sparsity import distinctiveness, prototypes_for, sparsity
from protoserve.audit.subject import pieces_of
from tests.protoserve.audit.toys import STATISTICS, ToyEngine, sample, subject


@pytest.mark.parametrize(
    ("contributions", "count"),
    [([8.0, 1.0, 1.0], 1), ([7.0, 2.0, 1.0], 2), ([1.0] * 5, 4), ([1.0, -9.0], 1), ([-1.0, 0.0], 0)],
)
def test_prototypes_for_80_percent(contributions: list[float], count: int) -> None:
    assert prototypes_for(np.array(contributions), 0.8) == count


def test_distinctiveness_is_one_less_the_mean_overlap_of_pairs() -> None:
    boxes = [(0, 0, 4, 4), (0, 0, 4, 4), (2, 0, 6, 4)]
    # The overlaps are 1, 1/3 and 1/3.
    assert distinctiveness(boxes) == pytest.approx(1 - (1 + 2 / 3) / 3)
    assert distinctiveness([(0, 0, 1, 1), (1, 0, 2, 1)]) == 1
    assert np.isnan(distinctiveness(boxes[:1]))


def test_first_evidence_of_the_toy_tells_and_is_never_always_on() -> None:
    toy = subject()
    outputs = toy.run(sample().arrays)
    (found,) = sparsity(toy, outputs, pieces_of(outputs), STATISTICS, seed=0)
    assert (found.telling.measured.mean, found.always_on.measured.mean) == (1.0, 0.0)
    # Two of the four prototypes tell, two are always on.
    assert (found.telling.baseline.mean, found.always_on.baseline.mean) == (0.5, 0.5)
    # Both classes have two positive contributions: 4 · 0.358 and 4 · 0.25, so both are needed.
    assert found.prototypes_for_80.measured.mean == found.prototypes_for_80.baseline.mean == 2


def test_always_on_evidence_is_found() -> None:
    # The always-on prototype 1 is far more similar than usual, so it leads the evidence for Red.
    toy = subject(ToyEngine(maps=lambda images: np.stack([np.full((len(images), 4, 4), v) for v in (0, 9, 0, 0)], 1)))
    outputs = toy.run(sample().arrays)
    (found,) = sparsity(toy, outputs, pieces_of(outputs), STATISTICS, seed=0)
    assert (found.always_on.measured.mean, found.telling.measured.mean) == (1.0, 0.0)
    assert found.telling.difference.high < 0

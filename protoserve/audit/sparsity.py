"""Sparsity: how few prototypes tell a node, whether they tell it from its siblings, and how far their boxes differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.intervals import compare, compare_known
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import Sparsity
from protoserve.inference.engine import Outputs
from protoserve.schema import Box
from protoserve.similarity_statistics import TELLING, SimilarityStatistics

SHARE: Final = 0.8
BOXES: Final = 5


def sparsity(
    subject: Subject, outputs: Outputs, pieces: list[Piece], statistics: SimilarityStatistics, seed: int
) -> list[Sparsity]:
    """Measure every level. `statistics` say which prototypes tell their class from its siblings."""
    generator = np.random.default_rng([seed, 4])
    telling = statistics.effect >= TELLING
    result = []
    for level in levels_of(pieces):
        rows = []
        for piece in (piece for piece in pieces if piece.level == level):
            group, contributions = subject.contributions(piece.node, outputs.similarity[piece.image])
            first = piece.prototypes[0]
            boxes = [subject.box(cell) for cell in piece.cells[:BOXES].tolist()]
            anywhere = generator.choice(subject.cells, size=len(boxes), replace=True).tolist()
            rows.append(
                (
                    prototypes_for(contributions, SHARE),
                    np.ceil(SHARE * (contributions > 0).sum()),
                    statistics.always_on[first],
                    statistics.always_on[group].mean(),
                    telling[first],
                    telling[group].mean(),
                    distinctiveness(boxes),
                    distinctiveness([subject.box(cell) for cell in anywhere]),
                )
            )
        columns = np.array(rows, dtype=np.float64).T
        result.append(
            Sparsity(
                level=level,
                prototypes_for_80=compare(columns[0], columns[1], seed),
                always_on=compare(columns[2], columns[3], seed),
                telling=compare(columns[4], columns[5], seed),
                distinctiveness=compare_known(columns[6], columns[7], seed),
            )
        )
    return result


def prototypes_for(contributions: NDArray[np.float64], share: float) -> int:
    """Return the smallest number of prototypes whose contributions make `share` of the sum of the positive ones.

    >>> prototypes_for(np.array([1.0, 6.0, -5.0, 3.0]), 0.8)
    2
    """
    positive = np.sort(contributions[contributions > 0])[::-1]
    # A tolerance of rounding, so that an exact share does not need one more.
    return int(np.searchsorted(positive.cumsum(), share * positive.sum() * (1 - 1e-9)) + 1) if len(positive) else 0


def distinctiveness(boxes: Sequence[Box]) -> float:
    """Return 1 − the mean intersection over union of all pairs of boxes; NaN for fewer than two.

    >>> distinctiveness([(0, 0, 2, 2), (1, 0, 3, 2)])
    0.6666666666666667
    """
    pairs = [_intersection_over_union(first, second) for first, second in combinations(boxes, 2)]
    return 1 - sum(pairs) / len(pairs) if pairs else float("nan")


def _intersection_over_union(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0) * max(height, 0)
    areas = sum((right - left) * (bottom - top) for left, top, right, bottom in (first, second))
    return intersection / (areas - intersection)

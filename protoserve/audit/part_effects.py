"""Part effects: does the evidence say which parts an answer depends on? (FunnyBirds, Hesse et al. 2023)

Pictures without each of their parts tell on which of them the answer depends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.intervals import compare_known
from protoserve.audit.interventions import Interventions
from protoserve.audit.masks import Masks
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import Comparison, PartEffects
from protoserve.inference.engine import Outputs
from protoserve.schema import Box

# The shares of all contributions from which on a part is important; the paper takes the best of these, which the audit
# must not choose on the pictures that it judges, so it takes their mean.
THRESHOLDS: Final = np.linspace(0.01, 0.50, 80)
# A part whose absence changes the logit by less than this share has no effect; nor has one whose absence raises it.
IRRELEVANT: Final = 0.05
# A rank correlation of fewer parts is -1, 0 or 1.
FEWEST_PARTS: Final = 3
_VALUES: Final = 256


@dataclass(frozen=True)
class _Shown:
    """What an image shows: its `mask`, the `shares` [cells, 256] of the mask's values in each cell's box, and the
    `logits` [nodes] of the image without each part, by its value (0: before another background)."""

    mask: NDArray[np.uint8]
    shares: NDArray[np.float64]
    logits: Mapping[int, NDArray[np.float32]]


@dataclass
class _Rows:
    """The figures of one level, a row per image: [measured, baseline]; NaN where an image does not tell."""

    complete: list[tuple[float, float]] = field(default_factory=list)
    undistracted: list[tuple[float, float]] = field(default_factory=list)
    correct: list[tuple[float, float]] = field(default_factory=list)
    contrastive: list[tuple[float, float]] = field(default_factory=list)


def part_effects(
    subject: Subject,
    sample: Sample,
    masks: Masks,
    interventions: Interventions,
    outputs: Outputs,
    pieces: list[Piece],
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> list[PartEffects]:
    """Compare the contributions from each part with what the node's logit loses in the picture without it.

    Every contribution counts for the parts in its box, by the share of the box's pixels. Images without a mask or
    without changed pictures are left out, and so are levels without any. Calls `advance(1)` after each image.
    """
    by_image: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_image.setdefault(piece.image, []).append(piece)
    rows: dict[int, _Rows] = {}
    for image, geometry in enumerate(sample.geometries):
        mask = masks.read(sample.names[image], (geometry.picture_height, geometry.picture_width))
        changed = {} if mask is None else interventions.without(sample.names[image], geometry)
        if mask is not None and changed and image in by_image:
            background = interventions.background(sample.names[image], geometry)
            if background is not None:
                changed[0] = background
            logits = dict(zip(changed, subject.run(np.stack(list(changed.values()))).logit, strict=True))
            boxes = [subject.box_in(geometry, cell) for cell in range(subject.cells)]
            shown = _Shown(mask, np.stack([shares_of(mask, box) for box in boxes]), logits)
            for piece in by_image[image]:
                leaf = subject.taxonomy.leaves[sample.leaves[image]]
                right = subject.taxonomy.path_at_level[leaf, piece.level - 1] == piece.node
                decisive = masks.decisive.get(subject.taxonomy.names[piece.node], ()) if right else ()
                _add(rows.setdefault(piece.level, _Rows()), subject, outputs, piece, shown, decisive)
        advance(1)
    return [
        PartEffects(
            level=level,
            complete=_compared(rows[level].complete, seed),
            undistracted=_compared(rows[level].undistracted, seed),
            correct=_compared(rows[level].correct, seed),
            contrastive=_compared(rows[level].contrastive, seed),
        )
        for level in levels_of(pieces)
        if level in rows
    ]


def _compared(rows: list[tuple[float, float]], seed: int) -> Comparison | None:
    measured, baseline = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    return compare_known(measured, baseline, seed)


def shares_of(mask: NDArray[np.uint8], box: Box) -> NDArray[np.float64]:
    """Return the share of a box's pixels that each value of the mask has, float64 [256]; 0 is the background."""
    left, top, right, bottom = box
    inside = mask[top:bottom, left:right].ravel()
    return np.asarray(np.bincount(inside, minlength=_VALUES) / inside.size)


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two lists of values, where equal values share their mean rank; NaN for fewer than
    `FEWEST_PARTS` values, or if all values of a list are equal.

    >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.3, 0.2]))
    0.5
    """
    if len(first) < FEWEST_PARTS:
        return float("nan")
    ranks = []
    for values in (first, second):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum() - (counts - 1) / 2)[places])
    one, two = (found - found.mean() for found in ranks)
    spread = np.sqrt((one @ one) * (two @ two))
    return float(one @ two / spread) if spread else float("nan")


def found_decisive(importance: NDArray[np.float64], total: float, decisive: list[int]) -> float:
    """The share of `THRESHOLDS` at which a decisive part is important: has more than that share of the `total`."""
    return float((importance[decisive].max() > THRESHOLDS * total).mean())


def not_distracted(importance: NDArray[np.float64], total: float, irrelevant: list[int]) -> float:
    """The share of the irrelevant parts that are not important, mean over `THRESHOLDS`."""
    return float(1 - (importance[irrelevant] > THRESHOLDS[:, None] * total).mean())


def _add(
    rows: _Rows, subject: Subject, outputs: Outputs, piece: Piece, shown: _Shown, decisive_parts: Sequence[int]
) -> None:
    """Add an image at a level; `decisive_parts` are those of its node, none where the node is wrong."""
    image, node = piece.image, piece.node
    logit = float(outputs.logit[image, node])
    drops = {value: logit - float(found[node]) for value, found in shown.logits.items()}
    mask = shown.mask

    def importance_for(other: int) -> tuple[NDArray[np.float64], float]:
        """What the parts add to a node's logit, [256], and the sum of what adds to it."""
        group, contributions = subject.contributions(other, outputs.similarity[image])
        return contributions @ shown.shares[outputs.cell[image, group]], float(contributions.clip(0).sum())

    importance, total = importance_for(node)
    even = total * np.bincount(mask.ravel(), minlength=_VALUES) / mask.size
    present = [value for value in drops if value and (mask == value).any()]
    found = np.array([drops[value] for value in present])
    rows.correct.append((rank_correlation(importance[present], found), rank_correlation(even[present], found)))
    changed = [*present, *({0} & set(drops))]
    irrelevant = [value for value in changed if drops[value] < 0 or abs(drops[value]) < IRRELEVANT * abs(logit)]
    if irrelevant:
        rows.undistracted.append(
            (not_distracted(importance, total, irrelevant), not_distracted(even, total, irrelevant))
        )
    decisive = [value for value in decisive_parts if (mask == value).any()]
    if not decisive:
        return
    rows.complete.append((found_decisive(importance, total, decisive), found_decisive(even, total, decisive)))
    number, _ = subject.places[node]
    siblings = [other for other in subject.table.groups[number].children if other != node]
    own = importance[decisive].sum()
    others = np.array([importance_for(other)[0][decisive].sum() for other in siblings])
    # An explanation that does not see the class gives equal values, which count as one half.
    rows.contrastive.append((float(((own > others) + 0.5 * (own == others)).mean()), 0.5))

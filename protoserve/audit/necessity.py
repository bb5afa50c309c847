"""Necessity (deletion) and sufficiency (insertion) of the evidence boxes, beside random and least contributing ones.

Deletion and insertion: Petsiuk et al. 2018 (RISE); random and least relevant regions as baselines: Samek et al. 2017.
The pictures are changed at model size, so the engine sees exactly the stated pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.intervals import compare
from protoserve.audit.regions import STEPS, combined, filled, ladder, ladder_of_area, shifted
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import FILLS, BoxEffect, Fill
from protoserve.inference.engine import Outputs

# Random offsets per image and level; their effects are averaged.
DRAWS: Final = 3


class SupportsLogProbability(Protocol):
    """A classifier whose answers to changed pictures are measured."""

    def log_probability(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the log-probabilities of all nodes, float64 [images, nodes]."""


@dataclass(frozen=True)
class Effects:
    """The effects at one level under one fill, float64 [images of the level, steps], in nats; and the evidence's share
    of the picture, of the same shape."""

    evidence: NDArray[np.float64]
    random: NDArray[np.float64]
    least: NDArray[np.float64]
    area: NDArray[np.float64]


def box_effects(
    subject: Subject,
    sample: Sample,
    outputs: Outputs,
    pieces: list[Piece],
    seed: int,
    fills: Sequence[Fill] = FILLS,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[list[BoxEffect], list[BoxEffect]]:
    """Measure necessity and sufficiency at every level under every fill. Calls `advance(1)` after each image.

    Necessity is the log-probability of the piece's node in the picture less that in the picture with the boxes filled;
    sufficiency is that in the filled picture with only the boxes kept, less that in the filled picture.
    """
    generator = np.random.default_rng([seed, 2])
    rows: dict[tuple[int, int, Fill], list[Effects]] = {}
    by_image: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_image.setdefault(piece.image, []).append(piece)
    for image in range(len(sample)):
        own = by_image.get(image, [])
        regions = [_regions(subject, piece, outputs, generator) for piece in own]
        for fill in fills if own else ():
            both = region_effects(subject, sample, image, [piece.node for piece in own], regions, fill)
            for mode, effects in enumerate(both):
                for piece, region, effect in zip(own, regions, effects, strict=True):
                    rows.setdefault((mode, piece.level, fill), []).append(_effects(effect, region))
        advance(1)
    levels = levels_of(pieces)
    necessity, sufficiency = (
        [_summary(rows[mode, level, fill], level, fill, seed) for level in levels for fill in fills] for mode in (0, 1)
    )
    return necessity, sufficiency


def region_effects(
    subject: SupportsLogProbability,
    sample: Sample,
    image: int,
    nodes: Sequence[int],
    regions: Sequence[NDArray[np.bool_]],
    fill: Fill,
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return what each of the `nodes` loses when its regions of an image are filled (necessity), and what it gains when
    only they are kept (sufficiency).

    `regions` bool [1 + regions, height, width] belong to one node each; the first region of each is empty. Returns for
    every node float64 [regions], in nats.
    """
    picture = sample.arrays[image]
    filling = filled(picture, sample.arrays[sample.others[image]], fill)
    necessity, sufficiency = (
        [
            sign * (values[1:, node] - values[0, node])
            for node, values in zip(nodes, _log_probabilities(subject, inside, outside, regions), strict=True)
        ]
        for sign, inside, outside in ((-1.0, filling, picture), (1.0, picture, filling))
    )
    return necessity, sufficiency


def area_under_curve(effect: NDArray[np.float64], steps: Sequence[int] = STEPS) -> NDArray[np.float64]:
    """Return the area under each curve of `effect` [images, steps], divided by the largest number of boxes.

    The curve starts at 0 boxes with effect 0 and is linear between the steps, so the area is a mean effect in nats.

    >>> area_under_curve(np.array([[1.0, 3.0]]), steps=(1, 2)).tolist()
    [1.25]
    """
    whole = np.concatenate([np.zeros((len(effect), 1)), effect], axis=1)
    widths = np.diff(np.concatenate([[0], steps]))
    return np.asarray(((whole[:, 1:] + whole[:, :-1]) / 2 * widths).sum(axis=1) / steps[-1])


def _regions(subject: Subject, piece: Piece, outputs: Outputs, generator: np.random.Generator) -> NDArray[np.bool_]:
    """The regions of one piece, bool [1 + steps · (2 + draws), height, width]: none; those of the evidence; those of
    the least contributing prototypes; and the shifted ones, draw by draw."""
    size = subject.size
    evidence = ladder([subject.box(cell) for cell in piece.cells.tolist()], size)
    prototypes, contributions = subject.contributions(piece.node, outputs.similarity[piece.image])
    order = prototypes[np.argsort(np.abs(contributions), kind="stable")]
    order = order[~np.isin(order, piece.prototypes)]
    boxes = [subject.box(cell) for cell in outputs.cell[piece.image, order].tolist()]
    least = ladder_of_area(boxes, evidence.sum(axis=(1, 2)).tolist(), size)
    random = [shifted(evidence, generator) for _ in range(DRAWS)]
    return np.concatenate([np.zeros((1, *size), dtype=np.bool_), evidence, least, *random])


def _log_probabilities(
    subject: SupportsLogProbability,
    inside: NDArray[np.uint8],
    outside: NDArray[np.uint8],
    regions: Sequence[NDArray[np.bool_]],
) -> list[NDArray[np.float64]]:
    """The log-probabilities [regions, nodes] of each piece's combined pictures; equal regions are run once."""
    every = np.concatenate(regions)
    keys = np.packbits(every.reshape(len(every), -1), axis=1)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    answers = subject.log_probability(combined(inside, outside, every[first]))[inverse.ravel()]
    return np.split(answers, np.cumsum([len(region) for region in regions])[:-1])


def _effects(effect: NDArray[np.float64], regions: NDArray[np.bool_]) -> Effects:
    steps = len(STEPS)
    evidence, least = effect[:steps], effect[steps : 2 * steps]
    random = effect[2 * steps :].reshape(DRAWS, steps).mean(axis=0)
    return Effects(evidence, random, least, regions[1 : 1 + steps].mean(axis=(1, 2)))


def _summary(rows: list[Effects], level: int, fill: Fill, seed: int) -> BoxEffect:
    evidence, random, least, area = (
        np.stack([getattr(row, name) for row in rows]) for name in ("evidence", "random", "least", "area")
    )
    areas = [area_under_curve(curve) for curve in (evidence, random, least)]
    return BoxEffect(
        level=level,
        fill=fill,
        steps=list(STEPS),
        evidence=evidence.mean(axis=0).tolist(),
        random=random.mean(axis=0).tolist(),
        least=least.mean(axis=0).tolist(),
        area=area.mean(axis=0).tolist(),
        first=compare(evidence[:, 0], random[:, 0], seed),
        over_random=compare(areas[0], areas[1], seed),
        over_least=compare(areas[0], areas[2], seed),
    )

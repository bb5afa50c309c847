"""Locality: does a similarity depend on the pixels outside its box? (Sacha et al. 2024)

Here the pixels are replaced at random; `protoserve.audit.attack` replaces them by the paper's attack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.intervals import compare, compare_known
from protoserve.audit.regions import combined, region
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import REPLACEMENTS, Locality, Replacement
from protoserve.inference.engine import Outputs

PERCENTILE: Final = 90
# A similarity closer to 0 has no meaningful relative change.
SMALLEST: Final = 1e-6


@dataclass
class Changes:
    """The changes of one level under one replacement, a row per piece: [outside replaced, inside replaced]."""

    activation: list[list[float]] = field(default_factory=list)
    place: list[list[float]] = field(default_factory=list)
    rank: list[list[float]] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)
    bounded: int = 0
    unknown: int = 0

    def add(self, subject: Subject, sample: Sample, outputs: Outputs, changed: Outputs, piece: Piece) -> None:
        """Add a piece: `outputs` are those of the unchanged pictures, `changed` those of its own picture with the
        outside and with the inside of the box replaced."""
        prototype, cell = int(piece.prototypes[0]), int(piece.cells[0])
        before, map_before = similarity_at(outputs, piece.image, prototype, cell)
        number, _ = subject.places[piece.node]
        group = subject.layers[number].prototypes
        children = subject.table.prototype_child
        rivals = group[children[group] != children[prototype]]
        activation, place, rank = [], [], []
        for row in range(2):
            after, map_after, bounded = similarity_after(changed, row, prototype, cell, before)
            self.bounded += row == 0 and bounded
            self.unknown += row == 0 and np.isnan(after)
            activation.append(activation_change(before, after))
            if map_before is None or map_after is None:
                place.append(float("nan"))
            else:
                place.append(place_change(map_before, map_after))
            rank.append(float(rank_change(outputs.similarity[piece.image], changed.similarity[row], prototype, rivals)))
        self.activation.append(activation)
        self.place.append(place)
        self.rank.append(rank)
        leaf = subject.taxonomy.leaves[sample.leaves[piece.image]]
        true = int(subject.taxonomy.path_at_level[leaf, piece.level - 1])
        # Below the true leaf no node is right.
        right = (changed.path[:, piece.level - 1] == true) & (true >= 0)
        self.accuracy.append([float(piece.node == true) - float(after) for after in right.tolist()])

    def summary(self, level: int, replacement: Replacement, seed: int) -> Locality:
        """The figures of all pieces."""
        activation, place, rank, accuracy = (
            np.array(rows).T for rows in (self.activation, self.place, self.rank, self.accuracy)
        )
        return Locality(
            level=level,
            replacement=replacement,
            activation_change=compare_known(activation[0], activation[1], seed),
            place_change=compare_known(place[0], place[1], seed),
            rank_change=compare(rank[0], rank[1], seed),
            accuracy_change=compare(accuracy[0], accuracy[1], seed),
            bounded=self.bounded,
            unknown=self.unknown,
        )


def locality(
    subject: Subject,
    sample: Sample,
    outputs: Outputs,
    pieces: list[Piece],
    seed: int,
    replacements: Sequence[Replacement] = REPLACEMENTS,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Locality]:
    """Replace the pixels outside the box of every first piece of evidence, by uniform noise and by another picture.

    `outputs` are those of the unchanged pictures. The baselines replace the pixels inside the box instead. Calls
    `advance(1)` after each piece.
    """
    generator = np.random.default_rng([seed, 3])
    found: dict[tuple[int, Replacement], Changes] = {}
    for piece in pieces:
        picture = sample.arrays[piece.image]
        box = region([subject.box(int(piece.cells[0]))], subject.size)
        sources = {
            "noise": generator.integers(0, 256, picture.shape, dtype=np.uint8),
            "picture": sample.arrays[sample.others[piece.image]],
        }
        for replacement in replacements:
            # Outside replaced: the picture stays inside the box. Inside replaced: it stays outside.
            changed = subject.run(combined(picture, sources[replacement], np.stack([box, ~box])))
            found.setdefault((piece.level, replacement), Changes()).add(subject, sample, outputs, changed, piece)
        advance(1)
    return [
        found[level, replacement].summary(level, replacement, seed)
        for level in levels_of(pieces)
        for replacement in replacements
    ]


def activation_change(before: float, after: float) -> float:
    """PAC: |1 − after / before| · 100; NaN if `before` is about 0.

    Absolute, so that rises and falls do not cancel: a random replacement has no direction, unlike the paper's attack.

    >>> activation_change(2.0, 1.5)
    25.0
    """
    return abs(1 - after / before) * 100 if abs(before) >= SMALLEST else float("nan")


def place_change(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """PLC: 100 · (1 − IoU) of the cells above each map's 90th percentile; 0 if no cell is.

    Both maps are [rows, columns]; the paper compares pixels of enlarged maps, the audit cells.

    >>> place_change(np.eye(4)[:1], np.eye(4)[1:2])
    100.0
    """
    high_before, high_after = (values > np.percentile(values, PERCENTILE) for values in (before, after))
    union = int((high_before | high_after).sum())
    return 100.0 * (1 - int((high_before & high_after).sum()) / union) if union else 0.0


def rank_change(
    before: NDArray[np.float32], after: NDArray[np.float32], prototype: int, rivals: NDArray[np.int64]
) -> int:
    """PRC: how many more `rivals`, the group's prototypes of other nodes, exceed the prototype's similarity after the
    change than before; `before` and `after` are the similarities [prototypes].

    >>> rank_change(np.array([3.0, 1.0, 2.0]), np.array([1.5, 1.0, 2.0]), 0, np.array([1, 2]))
    1
    """
    places = [int((similarity[rivals] > similarity[prototype]).sum()) for similarity in (before, after)]
    return places[1] - places[0]


def similarity_at(outputs: Outputs, image: int, prototype: int, cell: int) -> tuple[float, NDArray[np.float32] | None]:
    """Return a prototype's similarity at a cell, and its map [rows, columns] if the graph gave it.

    The graph draws maps only of the evidence on the predicted path. Without the map, the similarity is that of the
    best cell if this is the best cell, else NaN.
    """
    drawn = np.argwhere(outputs.evidence_prototype[image] == prototype)
    if len(drawn):
        similarity_map = outputs.evidence_map[image, drawn[0, 0], drawn[0, 1]]
        return float(similarity_map.ravel()[cell]), similarity_map
    at_best = outputs.cell[image, prototype] == cell
    return float(outputs.similarity[image, prototype]) if at_best else float("nan"), None


def similarity_after(
    changed: Outputs, row: int, prototype: int, cell: int, before: float
) -> tuple[float, NDArray[np.float32] | None, bool]:
    """Return a prototype's similarity at a cell of a changed picture, its map if the graph gave it, and whether the
    similarity is only an upper bound.

    It is one where the graph gave no map and the best cell is another one that is less similar than `before`: no cell
    exceeds the best one, so the similarity fell at least so far. NaN if nothing is known.
    """
    after, map_after = similarity_at(changed, row, prototype, cell)
    best = float(changed.similarity[row, prototype])
    if np.isnan(after) and best < before:
        return best, None, True
    return after, map_after, False

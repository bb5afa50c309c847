"""Attacks outside the box, worked by hand on the toy model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.audit.attack import LIMIT, STEP, STEPS, attacked, attacked_locality
from protoserve.audit.stability import DEVIATION
from protoserve.audit.subject import pieces_of
from protoserve.bundle.truth_card import Comparison, Locality
from tests.protoserve.audit.toys import CELL, GREY, ToyEngine, local_maps, sample, subject

CORNER = 15


@dataclass(frozen=True)
class ToyGradients:
    """The gradient of the toy's distances, its similarities turned round: that of prototype 0 falls with red and rises
    with green, that of prototype 2 the other way round. A `place` makes every cell look there instead."""

    place: int | None = None

    def distance_gradient(
        self, images: NDArray[np.float32], prototypes: NDArray[np.int64], cells: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        gradient = np.zeros_like(images)
        for number, (prototype, cell) in enumerate(zip(prototypes.tolist(), cells.tolist(), strict=True)):
            row, column = divmod(cell if self.place is None else self.place, 4)
            sign = {0: 1.0, 2: -1.0}[prototype]
            inside = gradient[number, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            inside[..., 0], inside[..., 1] = -sign, sign
        return gradient


def attack_on(engine: ToyEngine | None, network: ToyGradients) -> Locality:
    toy, pictures = subject(engine), sample(12)
    outputs = toy.run(pictures.arrays)
    (found,) = attacked_locality(toy, pictures, outputs, pieces_of(outputs), 0, network)
    return found


def activation(found: Locality) -> Comparison:
    assert found.replacement == "attack" and found.activation_change is not None
    return found.activation_change


def test_what_depends_on_its_box_alone_withstands_the_attack() -> None:
    found = attack_on(None, ToyGradients())
    change = activation(found)
    assert (change.measured.low, change.measured.high) == (0.0, 0.0)
    for comparison in (found.rank_change, found.accuracy_change):
        assert comparison.measured.mean == 0
    # Inside, the stronger channel falls and the weaker one rises by all that the limit allows: 0.4 standard deviations
    # of red and green, of the 155 that the similarity is.
    expected = 100 * LIMIT * (DEVIATION[0] + DEVIATION[1]) / 155
    assert change.baseline.mean == pytest.approx(expected, abs=1)


def test_a_cell_that_reads_a_corner_is_found() -> None:
    def of_corner(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        # The peaks stay where they were, but the values are those of the corner.
        maps = local_maps(images)
        peak = maps == maps.max(axis=(2, 3), keepdims=True)
        return np.asarray(np.where(peak, 0.5, 0.25) * (1 + maps[:, :, -1:, -1:]))

    change = activation(attack_on(ToyEngine(maps=of_corner), ToyGradients(CORNER)))
    assert change.measured.low > 0
    assert change.difference.high > 0


def test_pixels_move_at_most_by_the_limit_and_only_in_their_region() -> None:
    pictures = np.full((2, 32, 32, 3), GREY, dtype=np.uint8)
    pictures[1] = 250
    regions = np.zeros((2, 32, 32), dtype=np.bool_)
    regions[:, :CELL, : 2 * CELL] = True
    zeros = np.zeros(2, dtype=np.int64)
    changed = attacked(ToyGradients(), pictures, zeros, zeros, regions, np.random.default_rng(0))
    assert (changed[~regions] == pictures[~regions]).all()
    moved = changed.astype(np.int64) - pictures
    assert STEPS * STEP >= LIMIT
    limit = LIMIT * DEVIATION
    # The first cell is attacked: red falls and green rises as far as allowed.
    assert moved[0, 0, 0, :2].tolist() == [-round(limit[0]), round(limit[1])]
    assert changed[1, 0, 0, 1] == 255
    # The second cell has no gradient: its values are random.
    beside = moved[0, :CELL, CELL : 2 * CELL]
    assert (np.abs(beside) <= limit + 0.5).all() and np.abs(beside).max() > limit.min() / 2
    assert not (beside == beside[0, 0]).all()

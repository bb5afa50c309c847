"""Boats, cars and trucks have their parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from training.rendered.classes import DECISIVE_PARTS, PARTS, leaf_paths
from training.rendered.shapes import Palette, Shape
from training.rendered.vehicles import boat, car, truck

PALETTE = Palette((200, 60, 40), (60, 200, 40), (40, 60, 200), outline=(10, 10, 10))
Figure = Callable[[np.random.Generator, Palette, str], list[Shape]]
FIGURES: dict[str, Figure] = {"Boat": boat, "Car": car, "Truck": truck}
LEAVES = [leaf for leaf in leaf_paths() if leaf[1] in FIGURES]


def figure(leaf: tuple[str, str, str], seed: int = 0) -> list[Shape]:
    return FIGURES[leaf[1]](np.random.default_rng(seed), PALETTE, leaf[2])


@pytest.mark.parametrize("leaf", LEAVES, ids="/".join)
@pytest.mark.parametrize("seed", range(5))
def test_a_figure_has_a_part_that_decides_at_every_level(leaf: tuple[str, str, str], seed: int) -> None:
    parts = {shape.part for shape in figure(leaf, seed)}
    assert parts <= set(PARTS)
    for level in (1, 2, 3):
        assert set(DECISIVE_PARTS["/".join(leaf[:level])]) & parts


@pytest.mark.parametrize("leaf", LEAVES, ids="/".join)
def test_a_figure_is_about_a_hundred_units_wide(leaf: tuple[str, str, str]) -> None:
    for seed in range(5):
        points = np.concatenate([shape.points for shape in figure(leaf, seed)])
        assert np.isfinite(points).all()
        assert 60 <= np.ptp(points, axis=0).max() <= 140


def test_another_seed_draws_another_figure() -> None:
    for leaf in LEAVES:
        first, again, other = (figure(leaf, seed) for seed in (0, 0, 1))
        assert all(np.array_equal(a.points, b.points) for a, b in zip(first, again, strict=True))
        assert len(first) != len(other) or any(
            not np.array_equal(a.points, b.points) for a, b in zip(first, other, strict=True)
        )

"""Regions and fillings, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.audit.regions import combined, filled, ladder, ladder_of_area, region, shifted
from tests.protoserve.audit.toys import picture

SIZE = (6, 8)


def test_overlapping_boxes_count_once() -> None:
    inside = region([(0, 0, 3, 2), (2, 1, 4, 3)], SIZE)
    assert inside.sum() == 6 + 4 - 1
    assert inside[1, 2] and inside[2, 3] and not inside[2, 0]


def test_a_ladder_adds_boxes_and_ends_with_all() -> None:
    boxes = [(0, 0, 2, 2), (4, 0, 5, 1), (4, 4, 5, 6)]
    assert ladder(boxes, SIZE, steps=(1, 2, 5)).sum(axis=(1, 2)).tolist() == [4, 5, 7]


def test_shifted_regions_keep_their_area_and_wrap() -> None:
    regions = ladder([(0, 0, 2, 2), (7, 5, 8, 6)], SIZE, steps=(1, 2))
    generator = np.random.default_rng(0)
    covered = np.zeros(SIZE)
    for _ in range(4000):
        moved = shifted(regions, generator)
        assert moved.sum(axis=(1, 2)).tolist() == [4, 5]
        assert (moved[0] <= moved[1]).all()
        covered += moved[0]
    # Every pixel is covered equally often: 4 of 48 times.
    assert covered / 4000 == pytest.approx(np.full(SIZE, 4 / 48), abs=0.02)


def test_a_ladder_of_area_takes_the_fewest_boxes() -> None:
    boxes = [(0, 0, 2, 2), (0, 0, 2, 2), (4, 0, 7, 2), (0, 4, 8, 6)]
    # 4 pixels; a repeated box adds none, so 5 pixels need the third box; 40 pixels need more than all.
    assert ladder_of_area(boxes, [4, 5, 40], SIZE).sum(axis=(1, 2)).tolist() == [4, 10, 26]


def test_fillings_are_the_mean_the_blurred_and_the_other_picture() -> None:
    square, other = picture(0, 5), picture(1, 6)
    # One of 16 cells has 155 more red.
    assert filled(square, other, "mean")[3, 3].tolist() == [round(100 + 155 / 16), 100, 100]
    assert filled(square, other, "swap") is other
    blurred = filled(square, other, "blur")
    assert blurred.shape == square.shape
    assert 100 < blurred[8, 8, 0] < 255 and (blurred[24:] == 100).all()


def test_combined_pictures_take_the_inside_from_the_first() -> None:
    square, other = picture(0, 5), picture(1, 6)
    inside = region([(0, 0, 8, 8)], (32, 32))
    both = combined(square, other, np.stack([inside, ~inside]))
    assert (both[0][inside] == square[inside]).all() and (both[0][~inside] == other[~inside]).all()
    assert (both[1][~inside] == square[~inside]).all() and (both[1][inside] == other[inside]).all()

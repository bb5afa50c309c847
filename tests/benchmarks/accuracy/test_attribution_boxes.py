"""Boxes from attributions, worked by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.accuracy.attribution_boxes import regions_of_area, strongest_boxes


def test_the_next_box_is_the_strongest_of_what_no_box_has_told() -> None:
    attribution = np.zeros((2, 6))
    attribution[0] = [0, 9, 8, 0, 5, 0]
    boxes = [(0, 0, 2, 2), (1, 0, 3, 2), (2, 0, 4, 2), (4, 0, 6, 2)]
    # 17 lies in box 1. Without it, box 3 has 5, and boxes 0 and 2, which share all that they have with box 1, nothing.
    assert list(strongest_boxes(attribution, boxes)) == [1, 3, 0, 2]


def test_pixels_that_speak_against_a_node_count_against_their_box() -> None:
    boxes = [(0, 0, 2, 1), (2, 0, 4, 1)]
    assert list(strongest_boxes(np.array([[6.0, -5.0, 2.0, 0.0]]), boxes)) == [1, 0]


@pytest.mark.parametrize("area", [1, 4, 5, 8, 11])
def test_regions_have_exactly_the_area_that_is_asked_for(area: int) -> None:
    boxes = [(0, 0, 2, 2), (1, 0, 3, 2), (4, 4, 7, 7)]
    (region,) = regions_of_area(boxes, [area], (8, 8))
    assert region.sum() == area


def test_the_last_box_is_cut_to_the_pixels_around_its_centre() -> None:
    (region,) = regions_of_area([(0, 0, 2, 2), (3, 3, 6, 6)], [5], (8, 8))
    expected = np.zeros((8, 8), dtype=np.bool_)
    expected[:2, :2] = expected[4, 4] = True
    assert (region == expected).all()


def test_a_larger_region_holds_the_smaller_ones() -> None:
    boxes = [(0, 0, 2, 2), (1, 0, 3, 2), (4, 4, 7, 7)]
    regions = regions_of_area(boxes, [3, 4, 7, 12, 60], (8, 8))
    assert all((later | earlier == later).all() for earlier, later in pairwise(regions))
    assert regions[-1].sum() == 4 + 2 + 9, "if the boxes do not reach, all of them"

"""Polygons against their geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.rendered.shapes import (
    Points,
    blend,
    box,
    curve,
    darker,
    ellipse,
    lighter,
    limb,
    petal,
    polygon,
    turned,
)


def area(points: Points) -> float:
    """The shoelace formula."""
    x, y = points[:, 0], points[:, 1]
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def test_colours_mix_from_one_to_the_other() -> None:
    assert blend((10, 20, 30), (110, 220, 130), 0.0) == (10, 20, 30)
    assert blend((10, 20, 30), (110, 220, 130), 1.0) == (110, 220, 130)
    assert darker((100, 100, 100), 0.3) == (70, 70, 70)
    assert lighter((155, 155, 155), 0.4) == (195, 195, 195)


def test_a_quarter_turn_takes_right_to_down() -> None:
    np.testing.assert_allclose(turned(polygon((1, 0), (3, 2)), 90), [[0, 1], [-2, 3]], atol=1e-12)
    np.testing.assert_allclose(turned(polygon((3, 2)), 180, (1, 1)), [[-1, 0]], atol=1e-12)


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_an_ellipse_has_its_centre_its_radii_and_its_area(degrees: float) -> None:
    points = ellipse(5, -2, 8, 3, degrees)
    np.testing.assert_allclose(points.mean(axis=0), [5, -2], atol=1e-12)
    distances = np.hypot(*(points - [5, -2]).T)
    assert distances.max() == pytest.approx(8)
    assert distances.min() == pytest.approx(3)
    # A polygon of 28 corners covers sin(2π/28)/(2π/28) of it.
    assert area(points) == pytest.approx(math.pi * 8 * 3 * math.sin(math.tau / 28) / (math.tau / 28))


def test_a_box_loses_its_corners_to_the_rounding() -> None:
    assert area(box(1, 2, 5, 8)) == pytest.approx(24)
    rounded = box(1, 2, 5, 8, rounding=1)
    np.testing.assert_allclose([*rounded.min(axis=0), *rounded.max(axis=0)], [1, 2, 5, 8])
    assert area(rounded) == pytest.approx(24 - (4 - math.pi), rel=0.01)
    # No rounding is larger than half a side.
    np.testing.assert_allclose(box(0, 0, 4, 10, rounding=9).max(axis=0), [4, 10])


@pytest.mark.parametrize("closed", [False, True])
def test_a_curve_passes_through_every_point(closed: bool) -> None:
    path = [(0.0, 0.0), (4.0, 1.0), (5.0, 6.0), (-1.0, 3.0)]
    points = curve(path, closed=closed, steps=5)
    np.testing.assert_allclose(points[::5][:4], path, atol=1e-12)
    assert len(points) == (20 if closed else 16)


def test_a_curve_along_a_line_stays_on_it() -> None:
    points = curve([(0, 0), (1, 2), (2, 4)])
    np.testing.assert_allclose(points[:, 1], 2 * points[:, 0], atol=1e-12)


def test_a_limb_is_as_wide_as_it_says_with_round_ends() -> None:
    points = limb([(0, 0), (10, 0), (20, 0)], 4, 4)
    np.testing.assert_allclose([*points.min(axis=0), *points.max(axis=0)], [-2, -2, 22, 2], atol=1e-9)
    assert area(points) == pytest.approx(20 * 4 + math.pi * 4, rel=0.02)


def test_a_petal_starts_at_its_tip_and_points_where_it_is_turned() -> None:
    right, down = petal(3, 4, 10, 6, 0), petal(3, 4, 10, 6, 90)
    np.testing.assert_allclose(right[0], [3, 4])
    assert right[:, 0].max() == pytest.approx(13, abs=0.1)
    assert down[:, 1].max() == pytest.approx(14, abs=0.1)
    assert np.ptp(right[:, 1]) == pytest.approx(np.ptp(down[:, 0]))

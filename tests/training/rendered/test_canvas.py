"""From polygons to pixels, coverage and masks."""

from __future__ import annotations

import numpy as np
import pytest

from training.rendered.canvas import Layer, Placement, blurred, over, paint, place
from training.rendered.classes import part_index
from training.rendered.shapes import Shape, box, ellipse

AS_DRAWN = Placement(np.eye(2), (0.0, 0.0))
RED, BLUE, BLACK = (200, 0, 0), (0, 0, 200), (0, 0, 0)


def test_a_placement_is_an_affine_map() -> None:
    placement = Placement(np.array([[2.0, 0.5], [-1.0, 3.0]]), (10.0, 20.0))
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, -1.0]])
    np.testing.assert_allclose(placement.apply(points), points @ placement.matrix + [10, 20])


@pytest.mark.parametrize("seed", range(20))
def test_a_figure_lies_within_its_picture_and_fills_most_of_it(seed: int) -> None:
    shapes = [Shape(box(-60, -5, 40, 10), RED, "body"), Shape(ellipse(0, -30, 12), RED, "head")]
    placement = place(np.random.default_rng(seed), shapes, 96)
    points = np.concatenate([placement.apply(shape.points) for shape in shapes])
    assert points.min() >= 0 and points.max() <= 96
    assert 0.68 * 96 <= np.ptp(points, axis=0).max() <= 0.94 * 96


def test_later_shapes_cover_earlier_ones_in_colour_and_in_the_mask() -> None:
    shapes = [
        Shape(box(4, 4, 28, 28), RED, "body", outlined=False),
        Shape(box(4, 4, 16, 28), BLUE, "head", outlined=False),
    ]
    layer = paint(shapes, AS_DRAWN, 32, BLACK)
    assert layer.colour[16, 10].tolist() == list(BLUE) and layer.colour[16, 22].tolist() == list(RED)
    assert layer.parts[16, 10] == part_index("head") and layer.parts[16, 22] == part_index("body")
    assert layer.parts[1, 1] == 0 and layer.coverage[1, 1] == 0
    assert layer.coverage[16, 10] == 1
    assert layer.coverage.sum() == pytest.approx(24 * 24, rel=0.03)


def test_an_outline_takes_the_outline_s_colour_and_belongs_to_its_part() -> None:
    layer = paint([Shape(box(30, 30, 220, 220), RED, "wheel")], AS_DRAWN, 256, (9, 9, 9))
    assert layer.colour[30, 120].tolist() == [9, 9, 9] and layer.colour[120, 120].tolist() == list(RED)
    assert layer.parts[29, 120] == layer.parts[30, 120] == part_index("wheel")


def test_a_layer_covers_as_much_as_it_says() -> None:
    below = np.full((1, 3, 3), 100.0)
    layer = Layer(np.full((1, 3, 3), 200.0), np.array([[0.0, 0.25, 1.0]]), np.zeros((1, 3), np.uint8))
    assert over(below, layer)[0, :, 0].tolist() == [100.0, 125.0, 200.0]


def test_a_blur_spreads_and_keeps_the_sum() -> None:
    values = np.zeros((41, 41))
    values[18:23, 18:23] = 1.0
    found = blurred(values, 3.0)
    assert found[20, 20] < 1 and found[20, 26] > 0
    assert found.sum() == pytest.approx(values.sum(), rel=0.05)
    np.testing.assert_allclose(found, found.T, atol=1 / 255)

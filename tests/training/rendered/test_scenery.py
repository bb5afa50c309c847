"""Backgrounds, colours and clutter."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from training.rendered.scenery import backdrop, choose_palette, colour_from, grain, occluder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.0, 1.0, 1.0), (255, 0, 0)),
        ((1 / 3, 1.0, 1.0), (0, 255, 0)),
        ((1 + 1 / 3, 1.0, 1.0), (0, 255, 0)),
        ((0.7, 0.0, 0.5), (128, 128, 128)),
        ((0.7, 0.0, 7.0), (255, 255, 255)),
    ],
)
def test_colours_come_from_hue_saturation_and_value(
    given: tuple[float, float, float], expected: tuple[int, int, int]
) -> None:
    assert colour_from(*given) == expected


def test_a_palette_stands_out_from_the_background_and_from_itself() -> None:
    far = 0
    for seed in range(50):
        background = np.full((8, 8, 3), [60.0 + 3 * seed, 120.0, 200.0 - 2 * seed])
        palette = choose_palette(np.random.default_rng(seed), background)
        colours = [tuple(background[0, 0]), palette.main, palette.second, palette.accent]
        far += min(math.dist(first, other) for first, other in combinations(colours, 2)) >= 85
        # Outlines are dark.
        assert max(palette.outline) <= 57
    assert far >= 45


def test_grain_is_smooth_noise_about_zero() -> None:
    fine = grain(np.random.default_rng(0), 96, 12)
    assert fine.shape == (96, 96)
    assert abs(fine.mean()) < 0.2 and 0.2 < fine.std() < 0.8
    assert np.abs(np.diff(fine, axis=0)).max() < 0.5


def test_backdrops_fill_the_picture_and_vary() -> None:
    scenes = [backdrop(np.random.default_rng(seed), 64) for seed in range(12)]
    for scene in scenes:
        assert scene.shape == (64, 64, 3)
        # Noise may leave 0..255 a little before the camera clips it.
        assert scene.min() > -40 and scene.max() < 295
    means = np.array([scene.mean((0, 1)) for scene in scenes])
    assert means.std(axis=0).min() > 5
    np.testing.assert_array_equal(scenes[3], backdrop(np.random.default_rng(3), 64))


def test_an_occluder_touches_the_picture_and_is_small() -> None:
    for seed in range(40):
        pieces, colour = occluder(np.random.default_rng(seed), 96)
        assert all(0 <= part <= 255 for part in colour)
        points = np.concatenate(pieces)
        assert ((points > 0) & (points < 96)).all(axis=1).any()
        assert np.ptp(points, axis=0).max() < 0.6 * 96

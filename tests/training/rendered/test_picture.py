"""One picture depends on its arguments alone, and nothing hides the part that decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.rendered import draw_picture, part_index
from training.rendered.canvas import Pixels
from training.rendered.picture import CONTRAST, contrasting_backdrop, with_occluders
from training.rendered.scenery import backdrop, choose_palette
from training.rendered.shapes import Palette

LEAF = ("Creature", "Bird", "Toucan")


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"split": "val"}, {"index": 2}, {"leaf": ("Creature", "Bird", "Peacock")}],
    ids=["seed", "split", "index", "leaf"],
)
def test_seed_split_index_and_leaf_each_give_another_background(other: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"leaf": LEAF, "seed": 0, "split": "train", "index": 1, "size": 64}
    first, second = (draw_picture(**arguments).pixels for arguments in (usual, usual | other))
    # The corners show the background, where a stream shared between the two would show.
    assert not np.array_equal(first[:4, :4], second[:4, :4])


def test_another_scene_shows_the_same_figure_before_another_background() -> None:
    usual: dict[str, Any] = {"leaf": LEAF, "seed": 0, "split": "train", "index": 1, "size": 96}
    first, second, third = (draw_picture(**usual, scene=scene) for scene in (1, 2, 3))
    for other in (second, third):
        seen = (first.parts > 0) & (other.parts > 0)
        assert seen.mean() > 0.1 and np.array_equal(first.parts[seen], other.parts[seen])
        # Occluders hide little of it in either.
        assert (first.parts != other.parts).mean() < 0.3 * (first.parts > 0).mean()
        behind = (first.parts == 0) & (other.parts == 0)
        difference = np.abs(first.pixels.astype(float) - other.pixels).mean(axis=2)
        # Exposure and noise change the figure a little.
        assert difference[behind].mean() > 2 * difference[seen].mean()
    assert not np.array_equal(second.pixels, third.pixels)


def test_the_backgrounds_of_other_scenes_contrast_with_the_figure() -> None:
    def gap(behind: Pixels, palette: Palette) -> float:
        mean = behind.reshape(-1, 3).mean(axis=0)
        return float(min(np.linalg.norm(mean - colour) for colour in (palette.main, palette.second, palette.accent)))

    chosen, plain = [], []
    for seed in range(40):
        rng = np.random.default_rng(1000 + seed)
        palette = choose_palette(rng, backdrop(rng, 64))
        plain.append(gap(backdrop(np.random.default_rng(seed), 64), palette))
        chosen.append(gap(contrasting_backdrop(np.random.default_rng(seed), 64, palette), palette))
    assert all(found >= min(first, CONTRAST) for found, first in zip(chosen, plain, strict=True))
    enough, by_chance = (sum(found >= CONTRAST for found in gaps) for gaps in (chosen, plain))
    assert enough > max(20, by_chance)


def test_nothing_covers_the_part_that_decides_the_leaf() -> None:
    parts = np.zeros((96, 96), dtype=np.uint8)
    parts[15:80, 15:80] = part_index("body")
    for part, columns in (("mane", slice(40, 65)), ("leg", slice(15, 25)), ("ear", slice(70, 80))):
        parts[30:70, columns] = part_index(part)
    mane, figure = parts == part_index("mane"), parts > 0
    grey = np.full((96, 96, 3), 128.0)
    palette = Palette((1, 1, 1), (2, 2, 2), (3, 3, 3), outline=(9, 9, 9))
    hidden = 0
    for seed in range(150):
        leaf = ("Creature", "Quadruped", "Lion")
        scene, seen = with_occluders(np.random.default_rng(seed), grey, parts, leaf, palette)
        assert np.array_equal(scene[mane], grey[mane]) and (seen[mane] == part_index("mane")).all()
        # What is hidden is background in the mask, and only where the picture has changed.
        assert set(np.unique(seen[seen != parts]).tolist()) <= {0}
        assert (scene[seen != parts] != 128.0).any(axis=1).all()
        assert (seen[figure] == 0).mean() < 0.4
        hidden += bool((seen != parts).any())
    assert hidden >= 15

"""The close view of a prototype's patch."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from protoserve.images.geometry import Cells, InputRule, geometry_of
from protoserve.images.patch_view import patch_view

CELLS = Cells(rows=4, columns=6)
STRETCH = InputRule(height=64, width=96, resize="stretch")


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def view_of(picture: Image.Image, rule: InputRule, cells: Cells, cell: int) -> Image.Image:
    return Image.open(io.BytesIO(patch_view(encoded(picture), rule, cells, cell)))


@pytest.mark.parametrize("rule", [STRETCH, InputRule(height=64, width=96, resize="crop", share=0.875)])
@pytest.mark.parametrize("cell", range(24))
def test_the_view_shows_the_patch_in_its_middle(rule: InputRule, cell: int) -> None:
    """The patch is painted red; the view must hold all of it, and it must lie in the middle where there is room."""
    left, top, right, bottom = geometry_of(224, 150, rule).cell_box(cell, CELLS)
    picture = Image.new("RGB", (224, 150), (0, 0, 255))
    picture.paste((255, 0, 0), (left, top, right, bottom))
    view = np.asarray(view_of(picture, rule, CELLS, cell).convert("RGB")).astype(int)
    side = max(48, 2 * max(right - left, bottom - top))
    assert view.shape == (side, side, 3)
    red = view[:, :, 0] > 128
    assert abs(int(red.sum()) - (right - left) * (bottom - top)) <= 0.06 * red.sum()
    if left >= side and top >= side and right <= 224 - side and bottom <= 150 - side:
        rows, columns = np.nonzero(red)
        assert abs(rows.mean() - side / 2) < 1.5 and abs(columns.mean() - side / 2) < 1.5


def test_the_view_stays_inside_a_small_picture() -> None:
    assert view_of(Image.new("RGB", (30, 20)), STRETCH, Cells(rows=1, columns=1), 0).size == (20, 20)


def test_the_size_of_the_picture_changes_only_the_size_of_the_view() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    small, large = (
        view_of(Image.fromarray(pixels).resize((12 * scale, 8 * scale), Image.Resampling.BOX), STRETCH, CELLS, 9)
        for scale in (30, 60)
    )
    assert large.size == (2 * small.width, 2 * small.height)
    difference = np.asarray(large.resize(small.size, Image.Resampling.BOX)).astype(int) - np.asarray(small)
    assert np.abs(difference).mean() < 6

"""The small picture of a patch: it shows the patch, outlined, wherever in the picture it lies."""

import numpy as np
import pytest
from PIL import Image

from protoserve.schema import Box
from training.outcome.patches import TILE, patch_picture


def blue_with_red(size: tuple[int, int], box: Box) -> Image.Image:
    picture = Image.new("RGB", size, (0, 0, 200))
    picture.paste((200, 0, 0), box)
    return picture


@pytest.mark.parametrize("box", [(80, 60, 120, 100), (0, 0, 40, 40), (260, 160, 300, 200), (130, 0, 170, 40)])
def test_the_whole_patch_is_shown_and_fills_a_quarter_of_the_tile(box: Box) -> None:
    tile = np.asarray(patch_picture(blue_with_red((300, 200), box), box)).astype(int)
    assert tile.shape == (TILE, TILE, 3)
    # The outline of two pixels lies on the patch, so what is red or outlined is the patch.
    blue = (tile[..., 2] > 120) & (tile[..., 0] < 80)
    assert (~blue).mean() == pytest.approx(0.25, abs=0.03)
    rows, columns = np.nonzero(~blue)
    assert np.ptp(rows) + 1 == pytest.approx(TILE / 2, abs=2)
    assert np.ptp(columns) + 1 == pytest.approx(TILE / 2, abs=2)


@pytest.mark.parametrize(
    ("size", "box"), [((20, 300), (0, 10, 18, 28)), ((1, 1), (0, 0, 1, 1)), ((28, 28), (0, 0, 28, 28))]
)
def test_pictures_smaller_than_the_patchs_surroundings_are_shown_too(size: tuple[int, int], box: Box) -> None:
    assert patch_picture(Image.new("L", size, 128), box).size == (TILE, TILE)

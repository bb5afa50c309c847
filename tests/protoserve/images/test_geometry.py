"""Cells of the feature map as boxes in the pixels of the original picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from protoserve.errors import InputError
from protoserve.images.decoded import DecodedImage
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.images.geometry import Cells, Geometry, InputRule, geometry_of, placement_of, tile_grid

RESIZES = ("stretch", "crop", "pad")
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
MODELS = st.tuples(st.integers(1, 512), st.integers(1, 512))


def rule(resize: str, height: int = 96, width: int = 96) -> InputRule:
    return InputRule.model_validate({"height": height, "width": width, "resize": resize})


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (37, 1000)])
def test_boxes_of_all_cells_tile_the_picture(size: tuple[int, int], resize: str) -> None:
    geometry = geometry_of(*size, rule(resize))
    covered = np.zeros((size[1], size[0]), dtype=int)
    for cell in range(49):
        left, top, right, bottom = geometry.cell_box(cell, Cells(7, 7))
        if resize == "stretch" and min(size) >= 7:
            covered[top:bottom, left:right] += 1
        else:
            covered[top:bottom, left:right] = 1
    assert (covered == 1).all()


def test_cell_box_by_hand() -> None:
    # 400 × 200 cropped to a square: the middle 200 × 200, starting at x = 100.
    crop = geometry_of(400, 200, rule("crop", 100, 100))
    assert crop.cell_box(0, Cells(2, 2)) == (100, 0, 200, 100)
    assert crop.cell_box(3, Cells(2, 2)) == (200, 100, 300, 200)
    # Padded to a square: 100 × 50 in the middle, 25 grey rows above and below.
    pad = geometry_of(400, 200, rule("pad", 100, 100))
    # Three cells wide and high, as far as the map reaches.
    assert crop.cell_box(0, Cells(4, 4, smoothing=3)) == (100, 0, 200, 100)
    assert crop.cell_box(5, Cells(4, 4, smoothing=3)) == (100, 0, 250, 150)
    assert pad.cell_box(0, Cells(4, 4)) == (0, 0, 100, 1)  # wholly in the padding: the nearest row
    assert pad.cell_box(5, Cells(4, 4)) == (100, 0, 200, 100)
    assert pad.cell_box(15, Cells(4, 4)) == (300, 199, 400, 200)


def test_a_cell_outside_the_map_is_refused() -> None:
    with pytest.raises(ValueError, match="cell 9 is outside a feature map of 3 × 3"):
        Geometry(9, 9, 9, 9, 1, 1, 0, 0).cell_box(9, Cells(3, 3))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1, 500), (3, 2)])
def test_a_fitted_picture_has_the_geometry_of_its_size(size: tuple[int, int], resize: str) -> None:
    fitted = fit(decode(Image.new("RGB", size)), rule(resize, 32, 48))
    assert fitted.geometry == geometry_of(*size, rule(resize, 32, 48))


@given(
    size=SIZES,
    model=MODELS,
    share=st.floats(0.1, 1.0),
)
def test_a_crop_is_centred_has_the_model_s_shape_and_is_as_large_as_allowed(
    size: tuple[int, int], model: tuple[int, int], share: float
) -> None:
    (width, height), (across, down) = size, model
    crop = InputRule(height=down, width=across, resize="crop", share=share)
    left, top, right, bottom = placement_of(width, height, crop).region
    assert left == pytest.approx(width - right, abs=1e-9) and top == pytest.approx(height - bottom, abs=1e-9)
    assert (right - left) * down == pytest.approx((bottom - top) * across)
    assert max((right - left) / width, (bottom - top) / height) == pytest.approx(share)


@given(
    size=SIZES,
    model=MODELS,
)
def test_padding_fills_one_side_and_centres_on_the_other(size: tuple[int, int], model: tuple[int, int]) -> None:
    (width, height), (across, down) = size, model
    placement = placement_of(width, height, rule("pad", down, across))
    (columns, rows), (left, top) = placement.size, placement.origin
    assert placement.region == (0, 0, width, height)
    assert columns == across or rows == down
    scale = min(across / width, down / height)
    assert abs(columns - max(1, width * scale)) <= 0.5 and abs(rows - max(1, height * scale)) <= 0.5
    assert 0 <= across - columns - 2 * left <= 1 and 0 <= down - rows - 2 * top <= 1


@pytest.mark.parametrize(
    "changed", [{"height": 0}, {"width": -1}, {"resize": "cover"}, {"share": 0}, {"share": 1.1}, {"shape": 3}]
)
def test_a_rule_refuses_values_out_of_range(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InputRule.model_validate({"height": 9, "width": 9, "resize": "crop", **changed})


# ---- tiles ---------------------------------------------------------------------------------------------------------


def test_box_of_a_tile_by_hand() -> None:
    tiles = Cells(3, 3, tile=50, step=25)
    # Not resized: the filter reads no neighbours, and the box is the tile.
    assert geometry_of(100, 100, rule("stretch", 100, 100)).cell_box(4, tiles) == (25, 25, 75, 75)
    # Halved: a model pixel's triangle ends two pixels from its centre. The first pixel of tile 4 has its centre at
    # 2 · 25.5 = 51, so it reads the pixels 49 to 52; the last, centred at 149, reads 147 to 150.
    assert geometry_of(200, 200, rule("stretch", 100, 100)).cell_box(4, tiles) == (49, 49, 151, 151)
    # Doubled: a triangle of one pixel on either side. The first centre is at 12.75, the last at 37.25.
    assert geometry_of(50, 50, rule("stretch", 100, 100)).cell_box(4, tiles) == (12, 12, 38, 38)
    # At the picture's corner there is nothing more to read.
    assert geometry_of(200, 200, rule("stretch", 100, 100)).cell_box(0, tiles) == (0, 0, 101, 101)
    # 400 × 200 cropped to the middle 200 × 200: a tile at the crop's edge also reads pixels just outside it.
    assert geometry_of(400, 200, rule("crop", 100, 100)).cell_box(0, tiles) == (99, 0, 201, 101)
    # Padded: 25 grey rows, then the picture at a quarter of its size. The first row's tiles begin in the grey.
    pad = geometry_of(400, 200, rule("pad", 100, 100))
    assert pad.cell_box(0, tiles) == (0, 0, 202, 102)
    assert pad.cell_box(0, Cells(4, 4, tile=25, step=25)) == (0, 0, 102, 2)
    assert pad.cell_box(12, Cells(4, 4, tile=25, step=25)) == (0, 198, 102, 200)
    # Decoded at half its size, 100 × 100, and halved again: centres at decoded 27 and 73, from 25 to 75.
    reduced = geometry_of(200, 200, rule("stretch", 50, 50), reduced=2)
    assert reduced.cell_box(4, Cells(3, 3, tile=24, step=13)) == (50, 50, 150, 150)


@settings(deadline=None, max_examples=300)
@given(
    size=st.tuples(st.integers(1, 260), st.integers(1, 260)),
    tile=st.integers(1, 40),
    step=st.integers(1, 40),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    resize=st.sampled_from(RESIZES),
    share=st.floats(0.1, 1.0),
    reduced=st.sampled_from((1, 1, 2, 4)),
    data=st.data(),
)
@example(size=(96, 96), tile=32, step=32, grid=(3, 3), resize="stretch", share=1.0, reduced=1, data=None)
# Pillow holds the crop's corner in float32, which moves the filter's edge across the centre of a pixel.
@example(size=(17079, 6), tile=4, step=1, grid=(1, 1), resize="crop", share=0.8, reduced=1, data=None)
def test_pixels_outside_a_tiles_box_change_none_of_its_pixels(
    size: tuple[int, int],
    tile: int,
    step: int,
    grid: tuple[int, int],
    resize: str,
    share: float,
    reduced: int,
    data: st.DataObject | None,
) -> None:
    """Byte for byte, for every rule, up- and downscaled, and on the decoded pixels of a reduced picture."""
    step = min(step, tile)
    rows, columns = grid
    height, width = tile + step * (rows - 1), tile + step * (columns - 1)
    fitting = InputRule.model_validate(
        {"height": height, "width": width, "resize": resize, "share": share if resize == "crop" else 1.0}
    )
    cell = rows * columns - 1 if data is None else data.draw(st.integers(0, rows * columns - 1))
    seed = 0 if data is None else data.draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    decoded = -(-size[1] // reduced), -(-size[0] // reduced)
    pixels = generator.integers(0, 256, (*decoded, 3), dtype=np.uint8)

    def fitted(array: Any) -> Any:
        return fit(DecodedImage(Image.fromarray(array), reduced, None if reduced == 1 else size), fitting)

    before = fitted(pixels)
    left, top, right, bottom = before.geometry.cell_box(cell, Cells(rows, columns, tile=tile, step=step))
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert left % reduced == 0 and top % reduced == 0
    # No wider than the filter's reach, rounded to decoded pixels.
    for low, high, scale in ((left, right, before.geometry.scale_x), (top, bottom, before.geometry.scale_y)):
        assert high - low <= scale * (tile - 1) + 2 * max(scale, reduced) + 2 * reduced
    # Extremes change the filter's sums the most.
    changed = np.where(pixels < 128, 255, 0).astype(np.uint8)
    inside = np.s_[top // reduced : -(-bottom // reduced), left // reduced : -(-right // reduced)]
    changed[inside] = pixels[inside]
    row, column = divmod(cell, columns)
    part = np.s_[row * step : row * step + tile, column * step : column * step + tile]
    np.testing.assert_array_equal(fitted(changed).array[part], before.array[part])


def test_grids_of_tiles_by_hand() -> None:
    assert tile_grid(224, 224, tile=56, step=56) == (4, 4)
    assert tile_grid(96, 128, tile=32, step=16) == (5, 7)
    assert tile_grid(48, 48, tile=48, step=1) == (1, 1)


@pytest.mark.parametrize(
    ("tile", "step", "message"),
    [
        (50, 50, "use tiles of 32 pixels, or pictures of 200 × 250 pixels$"),
        (50, 16, "use tiles of 48 or 64 pixels, or a step of 2, or pictures of 226 × 258 pixels$"),
        (64, 24, "use a step of 16 or 32, or pictures of 232 × 256 pixels$"),
        (300, 300, "use tiles of 32 pixels, or pictures of 300 × 300 pixels$"),
        (32, 64, "use a step of 32$"),
    ],
)
def test_tiles_that_leave_pixels_over_are_refused_with_the_nearest_that_fit(tile: int, step: int, message: str) -> None:
    with pytest.raises(InputError, match=f"^tiles of {tile} pixels, one every {step}, do not cover .*; {message}"):
        tile_grid(224, 256, tile, step)


@given(
    st.integers(1, 64).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(1, tile))),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_every_pixel_lies_in_a_tile(tile: tuple[int, int], rows: int, columns: int) -> None:
    side, step = tile
    height, width = side + step * (rows - 1), side + step * (columns - 1)
    assert tile_grid(height, width, side, step) == (rows, columns)
    covered = np.zeros((height, width), dtype=bool)
    for row in range(rows):
        for column in range(columns):
            covered[row * step : row * step + side, column * step : column * step + side] = True
    assert covered.all()


def test_box_of_a_cell_that_reaches_beyond_the_input_by_hand() -> None:
    same = Geometry(96, 96, 96, 96, 1.0, 1.0, 0.0, 0.0)
    cells = Cells(12, 12, tile=19, step=8, start=-9)
    assert same.cell_box(0, cells) == (0, 0, 10, 10)
    assert same.cell_box(13, cells) == (0, 0, 18, 18)
    assert same.cell_box(12 * 2 + 3, cells) == (15, 7, 34, 26)
    assert same.cell_box(143, cells) == (79, 79, 96, 96)

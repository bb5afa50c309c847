"""Pictures are brought to model size as the input rule says."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from protoserve.images.decoded import DecodedImage
from protoserve.images.decoding import decode
from protoserve.images.fitting import PAD_COLOUR, fit
from protoserve.images.geometry import Cells, InputRule, placement_of

BILINEAR = Image.Resampling.BILINEAR
RESIZES = ("stretch", "crop", "pad")


def rule(resize: str, height: int = 96, width: int = 96) -> InputRule:
    return InputRule.model_validate({"height": height, "width": width, "resize": resize})


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def as_stored(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The stored pixels of an upright picture, by the EXIF table: which sides row 0 and column 0 are."""
    height, width = upright.shape[:2]
    rows, columns = (width, height) if orientation >= 5 else (height, width)
    row, column = np.mgrid[:rows, :columns]
    y, x = {
        1: (row, column),
        2: (row, width - 1 - column),
        3: (height - 1 - row, width - 1 - column),
        4: (height - 1 - row, column),
        5: (column, row),
        6: (column, width - 1 - row),
        7: (height - 1 - column, width - 1 - row),
        8: (height - 1 - column, row),
    }[orientation]
    return np.ascontiguousarray(upright[y, x])


# ---- the sender's pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("size", [(360, 240), (240, 360)])
def test_box_lies_on_the_part_in_a_picture_turned_by_exif(
    size: tuple[int, int], kind: str, orientation: int, resize: str
) -> None:
    width, height = size
    part_x, part_y = round(width * 0.6), round(height * 0.35)
    upright = np.random.default_rng(1).integers(0, 40, (height, width, 3), dtype=np.uint8)
    upright[part_y - 5 : part_y + 5, part_x - 5 : part_x + 5] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    sent = encode(Image.fromarray(as_stored(upright, orientation)), kind, exif=exif)

    decoded = decode(sent)
    assert (decoded.width, decoded.height) == size
    fitted = fit(decoded, rule(resize))
    rows, columns = 8, 6
    light = np.maximum(fitted.array.astype(float).mean(axis=2) - 130, 0)  # brighter than the grey of padding
    cells = light.reshape(rows, 96 // rows, columns, 96 // columns).sum(axis=(1, 3))
    left, top, right, bottom = fitted.geometry.cell_box(int(cells.argmax()), Cells(rows, columns))
    # The part may straddle up to four cells; the brightest holds at least a quarter of its 100 pixels.
    assert (upright[top:bottom, left:right] == 255).all(axis=2).sum() >= 25
    assert (right - left) * (bottom - top) < upright.shape[0] * upright.shape[1] / 20


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(40, 200), st.integers(40, 200)),
    model=st.sampled_from([(64, 64), (64, 96), (96, 64)]),
    grid=st.sampled_from([(4, 4), (2, 4), (4, 2), (8, 8)]),
    resize=st.sampled_from(RESIZES),
    data=st.data(),
)
def test_a_mark_painted_into_a_cells_box_comes_back_in_that_cell(
    size: tuple[int, int], model: tuple[int, int], grid: tuple[int, int], resize: str, data: st.DataObject
) -> None:
    (rows, columns), (height, width) = grid, model
    cell = data.draw(st.integers(0, rows * columns - 1))
    black = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    before = fit(decode(black), rule(resize, height, width))
    left, top, right, bottom = before.geometry.cell_box(cell, Cells(rows, columns))
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    share = (height // rows, width // columns)
    row, column = divmod(cell, columns)
    inside = before.array[row * share[0] : (row + 1) * share[0], column * share[1] : (column + 1) * share[1]]
    if (inside == PAD_COLOUR).all(axis=2).mean() > 0.5:
        return  # mostly padding: its box is the nearest edge
    black[top:bottom, left:right] = 255
    after = fit(decode(black), rule(resize, height, width)).array.astype(float) - before.array
    light = after.mean(axis=2).reshape(rows, share[0], columns, share[1]).mean(axis=(1, 3))
    assert int(light.argmax()) == cell


def test_pad_keeps_the_whole_picture_on_grey() -> None:
    fitted = fit(decode(Image.new("RGB", (100, 50), (255, 0, 0))), rule("pad", 64, 64)).array
    assert (fitted[:16] == PAD_COLOUR).all() and (fitted[48:] == PAD_COLOUR).all()
    assert (fitted[16:48] == (255, 0, 0)).all()


def test_crop_takes_the_centre() -> None:
    wide = Image.new("RGB", (300, 100), (0, 0, 255))
    wide.paste((255, 0, 0), (100, 0, 200, 100))
    fitted = fit(decode(wide), rule("crop", 50, 50)).array
    assert (fitted[:, 1:-1] == (255, 0, 0)).all()
    assert (fitted[:, :, 0] > 200).all()  # the filter at the edge sees a little of what lies beyond


@pytest.mark.parametrize("resize", RESIZES)
def test_resizing_is_antialiased(resize: str) -> None:
    # One-pixel stripes vanish into their mean; a resize that samples points would keep black or white.
    stripes = np.zeros((480, 480, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    fitted = fit(decode(stripes), rule(resize, 48, 48)).array
    assert np.abs(fitted[4:-4, 4:-4].astype(int) - 128).max() <= 3


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_extreme_shapes_fit(size: tuple[int, int], resize: str) -> None:
    fitted = fit(decode(Image.new("RGB", size, (9, 9, 9))), rule(resize, 32, 48))
    assert fitted.array.shape == (32, 48, 3)
    assert fitted.array.flags.c_contiguous and fitted.array.flags.writeable
    left, top, right, bottom = fitted.geometry.cell_box(5, Cells(4, 4))
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


@pytest.mark.parametrize("size", [(80, 40), (40, 80)])
def test_a_crop_of_half_the_sides_takes_the_middle_quarter(size: tuple[int, int]) -> None:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    found = fit(decode(noise), InputRule(height=20, width=20, resize="crop", share=0.5))
    left, top = (width - 20) // 2, (height - 20) // 2
    np.testing.assert_array_equal(found.array, noise[top : top + 20, left : left + 20])
    assert found.geometry.cell_box(0, Cells(2, 2)) == (left, top, left + 10, top + 10)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(805, 603), (603, 805)])
def test_a_jpeg_reduced_while_decoding_keeps_its_places(size: tuple[int, int], resize: Any, orientation: int) -> None:
    across = np.linspace(0, 255, size[0])[None, :].repeat(size[1], 0)
    down = np.linspace(0, 255, size[1])[:, None].repeat(size[0], 1)
    drawn = np.stack([across, down, np.full_like(across, 90)], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    target = io.BytesIO()
    Image.fromarray(drawn).save(target, "JPEG", quality=95, exif=exif)
    rule = InputRule(height=64, width=96, resize=resize)
    whole = decode(target.getvalue())
    reduced = decode(target.getvalue(), draft_for=rule)
    assert reduced.reduced == 2
    assert (reduced.width, reduced.height) == (whole.width, whole.height)
    one, other = fit(whole, rule), fit(reduced, rule)
    assert other.geometry == replace(one.geometry, reduced=2)
    difference = np.abs(one.array.astype(int) - other.array.astype(int))
    assert difference.mean() < 1.0
    assert difference.max() <= 12


# ---- strips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16"])
def test_a_picture_prepared_in_strips_has_the_pixels_of_one_prepared_whole(
    mode: str, orientation: int, resize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (97, 61, 4), dtype=np.uint8)
    if mode == "I;16":
        stored = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        stored = Image.fromarray(noise, "RGBA").convert(mode)
    decoded = DecodedImage(stored, orientation=orientation)
    model = rule(resize, height=40, width=56).model_copy(update={"share": 0.875 if resize == "crop" else 1.0})
    small = fit(decoded, model)
    assert (small.array == fit(DecodedImage(decoded.picture), model).array).all()
    if decoded.is_plain:
        return
    # Pillow may shorten a picture before it narrows it; strips are always narrowed first.
    left, top, right, bottom = placement_of(decoded.width, decoded.height, model).region
    width, height = placement_of(decoded.width, decoded.height, model).size
    narrow = decoded.picture.resize((width, decoded.height), BILINEAR, box=(left, 0, right, decoded.height))
    expected = np.asarray(narrow.resize((width, height), BILINEAR, box=(0, top, width, bottom)))
    monkeypatch.setattr("protoserve.images.fitting._WHOLE_PIXELS", 0)
    for pixels in (1, 500, 2000):
        monkeypatch.setattr("protoserve.images.fitting._STRIP_PIXELS", pixels)
        stripped = fit(decoded, model)
        (column, row), (columns, rows) = placement_of(decoded.width, decoded.height, model).origin, (width, height)
        assert (stripped.array[row : row + rows, column : column + columns] == expected).all()
        assert stripped.geometry == small.geometry
        assert np.abs(stripped.array.astype(int) - small.array).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_boxes_lie_right_in_a_jpeg_reduced_for_its_size(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protoserve.images.decoding.FULL_JPEG_PIXELS", 100_000)
    upright = np.full((600, 900, 3), 30, dtype=np.uint8)
    upright[420:440, 630:650] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    sent = encode(Image.fromarray(as_stored(upright, orientation)), "JPEG", exif=exif, quality=95)
    decoded = decode(sent)
    assert (decoded.reduced, decoded.width, decoded.height) == (4, 900, 600)
    fitted = fit(decoded, rule("stretch"))
    cells = fitted.array.astype(float).mean(axis=2).reshape(8, 12, 8, 12).sum(axis=(1, 3))
    tiles = Cells(8, 8, tile=12, step=12)
    left, top, right, bottom = fitted.geometry.cell_box(int(cells.argmax()), tiles)
    assert left <= 640 <= right and top <= 430 <= bottom
    assert (right - left) * (bottom - top) < 900 * 600 / 30


def test_a_fitted_picture_keeps_the_hash_of_its_file() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "PNG")
    fitted = fit(decode(stream.getvalue()), rule("crop"))
    assert (fitted.sha256, fitted.drafted) == (hashlib.sha256(stream.getvalue()).hexdigest(), False)

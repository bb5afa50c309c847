"""Untrusted bytes in, upright RGB at model size out, and boxes on the sender's pixels."""

import io
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from protoserve.bundle.folder import InputRule
from protoserve.errors import ImageError, InputError
from protoserve.images import PAD_COLOUR, DecodedImage, Geometry, Limits, decode, fit

RESIZES = ("stretch", "crop", "pad")


def rule(resize: str, height: int = 96, width: int = 96) -> InputRule:
    return InputRule.model_validate({"height": height, "width": width, "resize": resize})


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def photograph(width: int = 80, height: int = 60) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


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
    left, top, right, bottom = fitted.geometry.cell_box(int(cells.argmax()), rows, columns)
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
    left, top, right, bottom = before.geometry.cell_box(cell, rows, columns)
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


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (37, 1000)])
def test_boxes_of_all_cells_tile_the_picture(size: tuple[int, int], resize: str) -> None:
    geometry = fit(decode(Image.new("RGB", size)), rule(resize)).geometry
    covered = np.zeros((size[1], size[0]), dtype=int)
    for cell in range(49):
        left, top, right, bottom = geometry.cell_box(cell, 7, 7)
        if resize == "stretch" and min(size) >= 7:
            covered[top:bottom, left:right] += 1
        else:
            covered[top:bottom, left:right] = 1
    assert (covered == 1).all()


def test_cell_box_by_hand() -> None:
    # 400 × 200 cropped to a square: the middle 200 × 200, starting at x = 100.
    crop = fit(decode(Image.new("RGB", (400, 200))), rule("crop", 100, 100)).geometry
    assert crop.cell_box(0, 2, 2) == (100, 0, 200, 100)
    assert crop.cell_box(3, 2, 2) == (200, 100, 300, 200)
    # Padded to a square: 100 × 50 in the middle, 25 grey rows above and below.
    pad = fit(decode(Image.new("RGB", (400, 200))), rule("pad", 100, 100)).geometry
    # Three cells wide and high, as far as the map reaches.
    assert crop.cell_box(0, 4, 4, smoothing=3) == (100, 0, 200, 100)
    assert crop.cell_box(5, 4, 4, smoothing=3) == (100, 0, 250, 150)
    assert pad.cell_box(0, 4, 4) == (0, 0, 100, 1)  # wholly in the padding: the nearest row
    assert pad.cell_box(5, 4, 4) == (100, 0, 200, 100)
    assert pad.cell_box(15, 4, 4) == (300, 199, 400, 200)


def test_a_cell_outside_the_map_is_refused() -> None:
    with pytest.raises(ValueError, match="cell 9 is outside a feature map of 3 × 3"):
        Geometry(9, 9, 9, 9, 1, 1, 0, 0).cell_box(9, 3, 3)


# ---- resizing ----------------------------------------------------------------------------------------------


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
    left, top, right, bottom = fitted.geometry.cell_box(5, 4, 4)
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


# ---- kinds of pictures -------------------------------------------------------------------------------------


def pixels(source: Any) -> NDArray[np.uint8]:
    return np.asarray(decode(source).picture)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert (pixels(encode(photograph(), kind)) == np.asarray(photograph())).all()


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {})])
def test_lossy_formats_come_close(kind: str, options: dict[str, Any]) -> None:
    smooth = photograph().resize((80, 60), Image.Resampling.BICUBIC, box=(30, 30, 40, 40))
    difference = pixels(encode(smooth, kind, **options)).astype(int) - np.asarray(smooth)
    assert np.abs(difference).mean() < 6


def test_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = encode(first, kind, save_all=True, append_images=[second], **options)
        assert (pixels(data) == (255, 0, 0)).all(), kind


def test_grey_cmyk_palette_and_one_bit_become_rgb() -> None:
    assert (pixels(encode(Image.new("L", (4, 4), 77), "PNG")) == 77).all()
    assert (pixels(encode(Image.new("1", (4, 4), 1), "PNG")) == 255).all()
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    assert (pixels(encode(palette, "PNG")) == (10, 200, 30)).all()
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(encode(cmyk, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3
    assert (pixels(encode(cmyk, "TIFF")) == (255, 0, 0)).all()


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    half.putpixel((0, 0), (200, 0, 0, 255))
    half.putpixel((1, 0), (200, 0, 0, 0))
    for kind in ("PNG", "TIFF"):
        found = pixels(encode(half, kind))
        assert found[0, 0].tolist() == [200, 0, 0]
        assert found[0, 1].tolist() == [255, 255, 255]
        assert found[2, 2].tolist() == [127, 127, 127]
    grey = pixels(encode(Image.new("LA", (4, 4), (0, 0)), "PNG"))
    assert (grey == 255).all()
    key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (pixels(encode(key, "PNG", transparency=(1, 2, 3))) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert (pixels(encode(palette, "PNG", transparency=bytes([255, 0]))) == 255).all()
    assert (pixels(encode(palette, "GIF", transparency=1)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65406, 65407, 65535]], dtype=np.uint16)
    found = pixels(encode(Image.fromarray(values), kind))
    assert found[0, :, 0].tolist() == np.rint(values[0] / 257).astype(int).tolist()
    assert (found[..., 0] == found[..., 2]).all()


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    file = tmp_path / "no suffix"
    file.write_bytes(encode(photograph(), "PNG"))
    expected = np.asarray(photograph())
    data = file.read_bytes()
    for source in (file, str(file), data, memoryview(data), photograph(), expected):
        assert (pixels(source) == expected).all()
    assert (pixels(expected[:, :, 0]) == expected[:, :, :1]).all()


def test_a_pillow_image_is_turned_by_its_exif_and_not_changed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encode(photograph(), "JPEG", exif=exif))
    with Image.open(tmp_path / "a.jpg") as picture:
        decoded = decode(picture)
        assert (decoded.width, decoded.height) == (60, 80)
        assert picture.size == (80, 60)


# ---- hostile input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "unsupported_image"),
        (b"hello, I am a text", "unsupported_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image"),
        (b"%PDF-1.7 ...", "unsupported_image"),
        (b"\xff\xd8\xff\xe0", "broken_image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "broken_image"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "broken_image"),
        (encode(Image.new("F", (4, 4)), "TIFF"), "unsupported_image"),
        (encode(Image.new("L", (4, 4)), "PPM"), "unsupported_image"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_code(content: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(content)
    assert caught.value.code == code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(kind: str, kept: float) -> None:
    whole = encode(photograph(), kind)
    with pytest.raises(ImageError) as caught:
        decode(whole[: int(len(whole) * kept)])
    assert caught.value.code == "broken_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_no_damage_escapes_as_another_error(kind: str) -> None:
    dice = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(photograph(), kind, **({"exif": exif} if kind in {"JPEG", "PNG", "WEBP", "TIFF"} else {}))
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 2, 20])):
            damaged[dice.randrange(dice.choice([40, len(damaged)]))] = dice.choice([0, 255, dice.randrange(256)])
        if dice.random() < 0.2:
            start = dice.randrange(len(damaged))
            del damaged[start : start + dice.randrange(1, 50)]
        try:
            assert isinstance(decode(bytes(damaged)), DecodedImage)
        except ImageError as error:
            assert error.code in {"broken_image", "unsupported_image", "image_too_large"}


def test_size_limits(tmp_path: Path) -> None:
    data = encode(photograph(), "PNG")
    for limits in (Limits(bytes=100), Limits(pixels=4799), Limits(side=79)):
        for source in (data, data if limits.bytes == 100 else photograph(), tmp_path / "a.png"):
            (tmp_path / "a.png").write_bytes(data)
            with pytest.raises(ImageError, match="allowed") as caught:
                decode(source, limits=limits)
            assert caught.value.code == "image_too_large"
    assert decode(data, limits=Limits(bytes=len(data), pixels=4800, side=80)).width == 80


def test_a_bomb_is_refused_on_its_header() -> None:
    # A BMP header that announces 40,000 × 40,000 pixels, with none behind it: decoding would need 4.8 GB.
    header = bytearray(encode(Image.new("RGB", (1, 1)), "BMP")[:54])
    header[18:26] = (40_000).to_bytes(4, "little") * 2
    with pytest.raises(ImageError) as caught:
        decode(bytes(header))
    assert caught.value.code == "image_too_large"
    header[18:26] = (9_000).to_bytes(4, "little") * 2  # 81 MP: Pillow itself would go on
    with pytest.raises(ImageError, match="9000 × 9000") as caught:
        decode(bytes(header))
    assert caught.value.code == "image_too_large"


def test_paths_that_are_no_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jpg: no such image"):
        decode(tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match="is a folder"):
        decode(tmp_path)
    with pytest.raises(InputError, match="can't read"):
        decode("a\0b.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match=r"text\.jpg is no picture"):
        decode(tmp_path / "text.jpg")


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
        7,
    ],
)
def test_other_objects_are_refused(source: Any) -> None:
    with pytest.raises(ImageError, match="no picture") as caught:
        decode(source)
    assert caught.value.code == "unsupported_image"


def test_unreadable_metadata_neither_warns_nor_spoils_the_picture() -> None:
    data = encode(photograph(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data).width == 80


@pytest.mark.parametrize("size", [(80, 40), (40, 80)])
def test_a_crop_of_half_the_sides_takes_the_middle_quarter(size: tuple[int, int]) -> None:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    found = fit(decode(noise), InputRule(height=20, width=20, resize="crop", share=0.5))
    left, top = (width - 20) // 2, (height - 20) // 2
    np.testing.assert_array_equal(found.array, noise[top : top + 20, left : left + 20])
    assert found.geometry.cell_box(0, 2, 2) == (left, top, left + 10, top + 10)


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
    assert one.geometry == other.geometry
    difference = np.abs(one.array.astype(int) - other.array.astype(int))
    assert difference.mean() < 1.0
    assert difference.max() <= 12


def test_small_jpegs_and_other_formats_are_never_reduced() -> None:
    rule = InputRule(height=64, width=64, resize="crop")
    picture = Image.effect_noise((255, 400), 90)
    for kind, size in (("JPEG", (255, 400)), ("PNG", (2000, 2000))):
        target = io.BytesIO()
        picture.resize(size).save(target, kind)
        assert decode(target.getvalue(), draft_for=rule).reduced == 1

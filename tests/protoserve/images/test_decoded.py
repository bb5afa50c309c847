"""Rows of a picture are those of the whole upright picture, in every mode and orientation; it knows its file."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from protoserve.images.decoded import EIGHT_BIT_MODES, DecodedImage, white_of
from protoserve.images.decoding import decode
from protoserve.images.geometry import InputRule


def stored(mode: str) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(4).integers(0, 256, (13, 9, 3), dtype=np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(noise.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBX", "RGBa", "PA"):
        return Image.frombytes(mode, noise.size, noise.tobytes()[:1] * (noise.width * noise.height * len(mode)))
    return noise.convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", [*sorted(EIGHT_BIT_MODES - {"PA", "RGBa", "HSV", "YCbCr"}), "I;16"])
def test_rows_are_those_of_the_upright_picture(mode: str, orientation: int) -> None:
    decoded = DecodedImage(stored(mode), orientation=orientation)
    whole = np.asarray(decoded.picture)
    # Pillow's own way to turn a picture, by its metadata.
    tagged = DecodedImage(stored(mode)).picture.copy()
    tagged.getexif()[0x0112] = orientation
    assert (whole == np.asarray(ImageOps.exif_transpose(tagged))).all()
    assert whole.shape[:2] == (decoded.height, decoded.width) == decoded.decoded_size[::-1]
    for first in range(decoded.height):
        for last in range(first + 1, decoded.height + 1, 3):
            rows = decoded.rows(first, last)
            assert (rows.mode, rows.size) == ("RGB", (decoded.width, last - first))
            assert (np.asarray(rows) == whole[first:last]).all()


def test_upright_rgb_is_not_copied() -> None:
    picture = stored("RGB")
    assert DecodedImage(picture).is_plain
    assert DecodedImage(picture).picture is picture
    assert not DecodedImage(picture, orientation=2).is_plain
    assert not DecodedImage(stored("L")).is_plain


def test_a_reduced_picture_has_the_size_of_the_senders() -> None:
    decoded = DecodedImage(stored("RGB"), reduced=4, full=(36, 50))
    assert (decoded.width, decoded.height, decoded.decoded_size) == (36, 50, (9, 13))


@pytest.mark.parametrize(
    ("values", "white"), [((0, 0), 255), ((3, 255), 255), ((0, 256), 4095), ((4095, 1), 4095), ((4096, 0), 65_535)]
)
def test_white_is_the_least_that_holds_every_value(values: tuple[int, int], white: int) -> None:
    assert white_of(Image.fromarray(np.array([values], dtype=np.uint16))) == white


def jpeg(side: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(stream, "JPEG")
    return stream.getvalue()


def test_the_hash_is_that_of_the_encoded_bytes(tmp_path: Path) -> None:
    data = jpeg(40)
    file = tmp_path / "photo.jpg"
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    assert {decode(source).sha256 for source in (file, str(file), data, bytearray(data))} == {digest}
    # Pixels are not what was sent.
    assert decode(np.zeros((4, 4, 3), dtype=np.uint8)).sha256 is None
    assert decode(Image.open(file)).sha256 is None


def test_a_draft_is_told_where_it_changed_the_pixels() -> None:
    rule = InputRule(height=32, width=32, resize="crop")
    assert decode(jpeg(800), draft_for=rule).drafted
    assert not decode(jpeg(64), draft_for=rule).drafted
    assert not decode(jpeg(800)).drafted

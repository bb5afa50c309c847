"""Crops around boxes, and pictures as `data:` URIs."""

from __future__ import annotations

import base64
import doctest
import io

import numpy as np
import pytest
from PIL import Image

from protoserve.pages import crops
from protoserve.pages.crops import crop, crop_square, data_uri, thumbnail, webp


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(crops).failed == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_square_lies_inside_the_picture_and_holds_the_box_where_it_fits(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(100):
        width, height = generator.integers(8, 3000, 2).tolist()
        x, y = (sorted(generator.integers(0, extent, 2).tolist()) for extent in (width, height))
        box = (x[0], y[0], x[1] + 1, y[1] + 1)
        left, top, side = crop_square(box, (width, height))
        assert left >= 0 and top >= 0 and left + side <= width + 1e-9 and top + side <= height + 1e-9
        if side < min(width, height):
            assert left <= box[0] and top <= box[1] and left + side >= box[2] - 1e-9 and top + side >= box[3] - 1e-9


def test_a_crop_shows_its_box_in_the_middle() -> None:
    picture = Image.new("RGB", (200, 100))
    picture.paste((255, 0, 0), (90, 40, 110, 60))
    found = np.asarray(crop(picture, (90, 40, 110, 60), 80))
    assert found.shape == (80, 80, 3)
    assert found[40, 40].tolist() == [255, 0, 0] and found[5, 5].tolist() == [0, 0, 0]
    assert (found[:, :, 0] > 128).mean() == pytest.approx(0.25, abs=0.02)


def test_a_thumbnail_is_never_larger_than_its_picture() -> None:
    assert thumbnail(Image.new("L", (400, 100)), 200).size == (200, 50)
    assert thumbnail(Image.new("RGB", (40, 1)), 200).size == (40, 1)


def test_an_address_says_what_the_picture_is() -> None:
    picture = Image.new("RGB", (4, 4), (200, 30, 30))
    uri = data_uri(webp(picture))
    assert uri.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as opened:
        assert opened.size == (4, 4)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    assert data_uri(buffer.getvalue()).startswith("data:image/png;")

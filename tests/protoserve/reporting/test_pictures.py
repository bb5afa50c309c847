"""The pictures of a report are kept once."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from protoserve.reporting.pictures import PictureStore


def test_equal_pictures_have_one_number() -> None:
    store = PictureStore()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    first = store.add(noise)
    assert store.add(noise.copy()) == first and store.add(noise, 30) != first
    assert store.add(Image.new("L", (40, 60))) == 2 and len(store.encoded) == 3


def test_a_picture_is_shrunk_and_never_enlarged() -> None:
    store = PictureStore()
    for side, size in ((30, (30, 15)), (400, (60, 30)), (None, (60, 30))):
        number = store.add(Image.new("RGB", (60, 30), (side or 0, 0, 0)), side)
        with Image.open(io.BytesIO(base64.b64decode(store.encoded[number]))) as picture:
            assert picture.format == "WEBP" and picture.size == size

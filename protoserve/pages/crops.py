"""The pictures beside an answer: the photograph, and crops around boxes, as `data:` URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from PIL import Image

from protoserve.schema import Box

# Sides of a photograph and of a crop, in pixels: twice the size at which they are shown.
PHOTOGRAPH: Final = 900
CROP: Final = 208
# Smaller crops are enlarged without smoothing, so that their pixels can be seen.
_PIXELS: Final = 24


@dataclass(frozen=True)
class Pictures:
    """The pictures that an answer is shown with: the upright `photograph`, and, by prototype, an encoded picture of the
    training patch, None where there is none."""

    photograph: Image.Image
    patch: Callable[[int], bytes | None]


def crop_square(box: Box, size: tuple[int, int]) -> tuple[float, float, float]:
    """Return left, top and side, in pixels, of the square that shows a box: twice the box, no less than a twelfth of
    the picture of `size`, inside the picture.

    >>> crop_square((10, 10, 20, 20), (100, 100))
    (5.0, 5.0, 20)
    """
    left, top, right, bottom = box
    shorter = min(size)
    side = min(max(2 * max(right - left, bottom - top), shorter / 12, 4), shorter)
    x, y = (
        max(0, min(extent - side, (low + high - side) / 2))
        for low, high, extent in ((left, right, size[0]), (top, bottom, size[1]))
    )
    return x, y, side


def crop(picture: Image.Image, box: Box, pixels: int = CROP) -> Image.Image:
    """Cut out the square of `crop_square`, `pixels` wide and high."""
    x, y, side = crop_square(box, picture.size)
    resampling = Image.Resampling.LANCZOS if side > _PIXELS else Image.Resampling.NEAREST
    area = (x, y, x + side, y + side)
    return picture.convert("RGB").resize((pixels, pixels), resampling, box=area, reducing_gap=3.0)


def thumbnail(picture: Image.Image, longest: int) -> Image.Image:
    """Shrink a picture to a longer side of at most `longest` pixels."""
    scale = min(1.0, longest / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if scale == 1.0:
        return picture.convert("RGB")
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def webp(picture: Image.Image, quality: int = 80) -> bytes:
    """Encode a picture as WebP."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """Return an encoded picture, WebP, PNG or JPEG, as a `data:` URI."""
    kind = {b"RIFF": "webp", b"\x89PNG": "png"}.get(content[:4], "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"

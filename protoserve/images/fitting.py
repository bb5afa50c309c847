"""Resizes a decoded picture to model size.

Training, export and serving resize every picture with `fit`, so a network gets the same pixels everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoserve.images.colour import to_srgb
from protoserve.images.decoded import DecodedImage
from protoserve.images.geometry import Geometry, InputRule, Region, geometry_of, placement_of

# A picture of more pixels is prepared in strips of about so many.
_WHOLE_PIXELS: Final = 500_000
_STRIP_PIXELS: Final = 500_000
PAD_COLOUR: Final = (124, 116, 104)


@dataclass(frozen=True)
class FittedImage:
    """A picture at model size, uint8 RGB [height, width, 3], and its geometry in the sender's pixels.

    `sha256` and `drafted` are those of its `DecodedImage`.
    """

    array: NDArray[np.uint8]
    geometry: Geometry
    sha256: str | None = None
    drafted: bool = False


def fit(image: DecodedImage, rule: InputRule) -> FittedImage:
    """Resize a picture to `rule.width` × `rule.height` pixels with Pillow's antialiased bilinear filter.

    `placement_of` gives the source region and its target; the padding is the grey (124, 116, 104).

    >>> from protoserve.images.decoding import decode
    >>> square = InputRule(height=64, width=64, resize="crop")
    >>> fit(decode(np.zeros((20, 30, 3), dtype=np.uint8)), square).array.shape
    (64, 64, 3)
    """
    placement = placement_of(image.width, image.height, rule)
    left, top, right, bottom = placement.region
    # At the edges of a crop, the filter also reads the pixels just outside the region.
    width, height = image.decoded_size
    box = (
        left / image.reduced,
        top / image.reduced,
        min(right / image.reduced, width),
        min(bottom / image.reduced, height),
    )
    resized = _resized(image, placement.size, box)
    if image.profile is not None:
        # On the few pixels that are left, which costs far less than on all.
        resized = to_srgb(resized, image.profile)
    array = np.empty((rule.height, rule.width, 3), dtype=np.uint8)
    if placement.size != (rule.width, rule.height):
        array[:] = PAD_COLOUR
    (column, row), (columns, rows) = placement.origin, placement.size
    array[row : row + rows, column : column + columns] = np.asarray(resized)
    geometry = geometry_of(image.width, image.height, rule, image.reduced)
    return FittedImage(array, geometry, image.sha256, image.drafted)


def _resized(image: DecodedImage, size: tuple[int, int], box: Region) -> Image.Image:
    """Resize a region of the upright picture; without a reducing gap, the filter reads every pixel of it.

    A picture that has to be rotated or converted and is larger than `_WHOLE_PIXELS` is prepared a strip at a time, and
    each strip is narrowed before the next one is prepared, so that there is never a second copy of the picture. The
    result is that of narrowing first and then shortening the whole picture, with 8 bits in between, as Pillow does. For
    pictures about twice as high as wide, Pillow 13 shortens first; then values may differ by 1.
    """
    if image.is_plain:
        return image.stored.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    (left, top, right, bottom), (width, height) = box, image.decoded_size
    if width * height <= _WHOLE_PIXELS:
        return image.rows(0, height).resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    rows = max(1, _STRIP_PIXELS // width)
    narrow = Image.new("RGB", (size[0], height))
    for first in range(0, height, rows):
        last = min(first + rows, height)
        strip = image.rows(first, last)
        across = (left, 0, right, last - first)
        narrow.paste(strip.resize((size[0], last - first), Image.Resampling.BILINEAR, box=across), (0, first))
    return narrow.resize(size, Image.Resampling.BILINEAR, box=(0, top, size[0], bottom))

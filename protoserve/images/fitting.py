"""Resizes a decoded picture to model size.

Training, export and serving resize every picture with `fit`, so a network gets the same pixels everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoserve.images.decoding import DecodedImage
from protoserve.images.geometry import Geometry, InputRule, geometry_of, placement_of

PAD_COLOUR: Final = (124, 116, 104)


@dataclass(frozen=True)
class FittedImage:
    """A picture at model size, uint8 RGB [height, width, 3], and its geometry in the sender's pixels."""

    array: NDArray[np.uint8]
    geometry: Geometry


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
    # Without a reducing gap, the filter reads every source pixel, so the geometry is exact. At the edges of a crop, it
    # also reads the pixels just outside the region.
    box = (
        left / image.reduced,
        top / image.reduced,
        min(right / image.reduced, image.picture.width),
        min(bottom / image.reduced, image.picture.height),
    )
    resized = image.picture.resize(placement.size, Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    array = np.empty((rule.height, rule.width, 3), dtype=np.uint8)
    if placement.size != (rule.width, rule.height):
        array[:] = PAD_COLOUR
    (column, row), (columns, rows) = placement.origin, placement.size
    array[row : row + rows, column : column + columns] = np.asarray(resized)
    return FittedImage(array, geometry_of(image.width, image.height, rule, image.reduced))

"""Regions of a picture at model size, and what replaces their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from protoserve.bundle.truth_card import Fill
from protoserve.schema import Box

# The numbers of boxes at which effects are measured.
STEPS: Final = (1, 2, 3, 5, 10)
# The standard deviation of the blur, as a share of the shorter side: 11 pixels of 224.
BLUR: Final = 0.05


def region(boxes: Sequence[Box], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the union of boxes in a picture of `size` (height, width): bool [height, width]."""
    inside = np.zeros(size, dtype=np.bool_)
    for left, top, right, bottom in boxes:
        inside[top:bottom, left:right] = True
    return inside


def ladder(boxes: Sequence[Box], size: tuple[int, int], steps: Sequence[int] = STEPS) -> NDArray[np.bool_]:
    """Return the unions of the first `steps` boxes, bool [steps, height, width]; fewer boxes count as all of them."""
    return np.stack([region(boxes[:step], size) for step in steps])


def shifted(regions: NDArray[np.bool_], generator: np.random.Generator) -> NDArray[np.bool_]:
    """Shift all regions [steps, height, width] by one random offset that wraps at the edges.

    Every region keeps its area exactly, whatever its boxes' overlaps, and covers every pixel equally often.
    """
    down, right = generator.integers(regions.shape[1:]).tolist()
    return np.roll(regions, (down, right), axis=(1, 2))


def ladder_of_area(boxes: Sequence[Box], areas: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return, for each of `areas` (pixels, rising), the union of the fewest first boxes that covers as many pixels:
    bool [areas, height, width]; if all boxes cover fewer, all of them."""
    inside, regions, used = np.zeros(size, dtype=np.bool_), [], 0
    for area in areas:
        while used < len(boxes) and inside.sum() < area:
            left, top, right, bottom = boxes[used]
            inside[top:bottom, left:right] = True
            used += 1
        regions.append(inside.copy())
    return np.stack(regions)


def filled(picture: NDArray[np.uint8], other: NDArray[np.uint8], fill: Fill) -> NDArray[np.uint8]:
    """Return the picture [height, width, 3] whose pixels replace those of a region: the mean colour of `picture`,
    `picture` blurred, or the `other` picture."""
    if fill == "swap":
        return other
    if fill == "mean":
        colour = np.rint(picture.reshape(-1, 3).mean(axis=0)).astype(np.uint8)
        return np.broadcast_to(colour, picture.shape)
    radius = BLUR * min(picture.shape[:2])
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def combined(inside: NDArray[np.uint8], outside: NDArray[np.uint8], regions: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return pictures with the pixels of `inside` in each of the regions [regions, height, width] and those of
    `outside` elsewhere: uint8 [regions, height, width, 3]."""
    return np.where(regions[..., None], inside, outside)

"""Plant a mark on pictures of one class: a shortcut that tells the class without its parts."""

from __future__ import annotations

from typing import Final

import numpy as np

from protoserve.errors import InputError, nearest
from training.rendered.classes import BACKGROUND, LeafPath, leaf_paths
from training.rendered.picture import Picture

# Magenta, which hardly a pixel has otherwise.
COLOUR: Final = (255.0, 0.0, 200.0)
# Diameter of the mark, and its distance from the right and lower edges, relative to the picture's side.
DIAMETER, DISTANCE = 0.14, 0.03


def marked(picture: Picture) -> Picture:
    """Return the picture with a disc in its lower right corner; its mask says `none` there.

    >>> empty = Picture(np.zeros((100, 100, 3), dtype=np.uint8), np.ones((100, 100), dtype=np.uint8))
    >>> marked(empty).pixels[90, 90].tolist(), marked(empty).parts[90, 90].item()
    ([255, 0, 200], 0)
    """
    size = picture.parts.shape[0]
    radius = DIAMETER * size / 2
    centre = size * (1 - DISTANCE) - radius
    pixel = np.arange(size) + 0.5
    away = np.hypot(pixel[:, None] - centre, pixel[None, :] - centre)
    coverage = np.clip(radius - away + 0.5, 0.0, 1.0)[:, :, None]
    pixels = picture.pixels * (1.0 - coverage) + np.array(COLOUR) * coverage
    parts = np.where(away < radius, np.uint8(BACKGROUND), picture.parts).astype(np.uint8)
    return Picture(np.rint(pixels).astype(np.uint8), parts)


def marked_leaf(name: str) -> LeafPath:
    """Return the leaf of this name; raises InputError if there is none.

    >>> marked_leaf("Creature/Bird/Toucan")
    ('Creature', 'Bird', 'Toucan')
    """
    names = {"/".join(leaf): leaf for leaf in leaf_paths()}
    if name not in names:
        raise InputError(f"mark is {name!r}, which is not a class of the rendered data set{nearest(name, names)}")
    return names[name]

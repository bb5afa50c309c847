"""Parts: does the evidence lie on the object, and on the part that tells the node from its siblings?

The pointing game of Zhang et al. 2018, with the box's centre as the point, beside chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.intervals import compare_known
from protoserve.audit.masks import Masks
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import PartHits, PartKind
from protoserve.errors import InputError
from protoserve.images.geometry import Geometry

PARTS: Final[tuple[PartKind, ...]] = ("object", "decisive")
_SHOWN: Final = 3


def part_hits(
    subject: Subject,
    sample: Sample,
    masks: Masks,
    pieces: list[Piece],
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> list[PartHits]:
    """Measure how much evidence has its box's centre on the object, and on a decisive part of its node.

    Boxes are in the sender's pixels, as the prediction states them. Images without a mask are left out. Chance is the
    share of all cells whose box's centre is on the part. Calls `advance(1)` after each image. Raises InputError if no
    image has a mask, and for a mask that does not fit.
    """
    by_image: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_image.setdefault(piece.image, []).append(piece)
    hits: dict[tuple[int, PartKind], list[tuple[float, float, float]]] = {}
    masked = 0
    for image in range(len(sample)):
        geometry = sample.geometries[image]
        mask = masks.read(sample.names[image], (geometry.picture_height, geometry.picture_width))
        advance(1)
        if mask is None:
            continue
        masked += 1
        values = centre_values(subject, mask, geometry)
        for piece in by_image.get(image, []):
            places: dict[PartKind, NDArray[np.bool_]] = {"object": values > 0}
            if (name := subject.taxonomy.names[piece.node]) in masks.decisive:
                places["decisive"] = np.isin(values, masks.decisive[name])
            for part, on_part in places.items():
                shown = on_part[piece.cells[:_SHOWN]]
                row = (float(shown[0]), float(shown.mean()), float(on_part.mean()))
                hits.setdefault((piece.level, part), []).append(row)
    if not masked:
        raise InputError(
            f"{masks.directory}: holds no mask of the {len(sample)} audited pictures; the mask of {sample.names[0]} is "
            f"{masks.directory.name}/{sample.names[0].rpartition('.')[0]}.png"
        )
    result = []
    for level in levels_of(pieces):
        for part in PARTS:
            first, first_three, chance = np.array(hits.get((level, part), [])).reshape(-1, 3).T
            on_first, on_three = (compare_known(share, chance, seed) for share in (first, first_three))
            if on_first is not None and on_three is not None:
                result.append(PartHits(level=level, part=part, first=on_first, first_three=on_three))
    return result


def centre_values(subject: Subject, mask: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Return the mask's value under the centre of every cell's box, uint8 [cells]."""
    left, top, right, bottom = np.array([subject.box_in(geometry, cell) for cell in range(subject.cells)]).T
    return np.asarray(mask[(top + bottom) // 2, (left + right) // 2])

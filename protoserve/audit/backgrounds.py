"""Background independence: do answer and evidence stay when only the background changes?

After FunnyBirds (Hesse et al. 2023) and the backgrounds challenge (Xiao et al. 2021), which exchange backgrounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from protoserve.audit.intervals import compare, compare_known
from protoserve.audit.interventions import Interventions
from protoserve.audit.masks import Masks, at_model_size
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import Background, BackgroundIndependence
from protoserve.inference.engine import Outputs

BACKGROUNDS: Final[tuple[Background, ...]] = get_args(Background)
# The standard deviation of the blur that fills where an object was, as a share of the shorter side.
_FILL: Final = 0.1


def background_independence(
    subject: Subject,
    sample: Sample,
    masks: Masks,
    interventions: Interventions | None,
    outputs: Outputs,
    pieces: list[Piece],
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> list[BackgroundIndependence]:
    """Put the object of every image with a mask before the background of another one, and where there are
    `interventions`, before a background that was drawn anew.

    The baseline keeps the background and exchanges the object for that of the other image. Images whose mask shows no
    object are left out, and so are levels without any other. Calls `advance(1)` after each image.
    """
    by_image: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_image.setdefault(piece.image, []).append(piece)
    objects = [
        None if mask is None else at_model_size(mask, geometry) > 0
        for name, geometry in zip(sample.names, sample.geometries, strict=True)
        for mask in [masks.read(name, (geometry.picture_height, geometry.picture_width))]
    ]
    rows: dict[tuple[int, Background], list[tuple[float, ...]]] = {}
    for image, own in enumerate(objects):
        other = int(sample.others[image])
        theirs = objects[other]
        if own is not None and theirs is not None and own.any() and theirs.any() and image in by_image:
            picture, another = sample.arrays[image], sample.arrays[other]
            changed = [
                np.where(theirs[..., None], another, without_object(picture, own)),
                np.where(own[..., None], picture, without_object(another, theirs)),
            ]
            kinds: list[Background] = ["swapped"]
            drawn = (
                None
                if interventions is None
                else interventions.background(sample.names[image], sample.geometries[image])
            )
            if drawn is not None:
                changed.append(drawn)
                kinds.append("rendered")
            answers = subject.run(np.stack(changed))
            for piece in by_image[image]:
                same = answers.path[:, piece.level - 1] == piece.node
                first = answers.evidence_prototype[:, piece.level - 1, 0] == piece.prototypes[0]
                for place, kind in enumerate(kinds, start=1):
                    row = (same[place], same[0], first[place], first[0])
                    rows.setdefault((piece.level, kind), []).append(tuple(map(float, row)))
        advance(1)
    result = []
    for level in levels_of(pieces):
        for kind in BACKGROUNDS:
            if (level, kind) in rows:
                columns = np.array(rows[level, kind]).T
                result.append(
                    BackgroundIndependence(
                        level=level,
                        background=kind,
                        answers=compare(columns[0], columns[1], seed),
                        first=compare_known(columns[2], columns[3], seed),
                    )
                )
    return result


def without_object(picture: NDArray[np.uint8], there: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a picture [height, width, 3] whose object's pixels, bool [height, width], are filled with the blurred
    background around them; the mean colour of the background where none is near."""
    radius = _FILL * min(picture.shape[:2])

    def blurred(values: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.asarray(Image.fromarray(values).filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64)

    behind = ~there
    if not behind.any():
        return np.full_like(picture, np.rint(picture.mean()))
    mean = picture[behind].mean(axis=0)
    weight = blurred(np.where(behind, np.uint8(255), np.uint8(0)))[..., None] / 255
    colour = blurred(np.where(behind[..., None], picture, np.uint8(0)))
    # A weight of a few hundredths is mostly rounding.
    filled = np.where(weight > 0.05, colour / np.maximum(weight, 0.05), mean)
    return np.where(behind[..., None], picture, np.rint(filled.clip(0, 255)).astype(np.uint8))

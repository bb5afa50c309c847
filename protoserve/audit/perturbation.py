"""Perturbation: does a change inside the box lower the similarity, and one outside not? (Xu-Darme et al. 2024)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from protoserve.audit.intervals import compare_known
from protoserve.audit.locality import SMALLEST, similarity_after, similarity_at
from protoserve.audit.regions import combined, region
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import Perturbation, PerturbationKind
from protoserve.inference.engine import Outputs
from protoserve.schema import Box

ALL: Final = "all"
KINDS: Final[tuple[PerturbationKind, ...]] = tuple(kind for kind in get_args(PerturbationKind) if kind != ALL)
# The settings of CaBRNet: what remains of brightness, contrast and saturation, the turn of the hue's circle, the blur's
# standard deviation in pixels, and the waves' amplitude in pixels and periods over the longer side of the box.
BRIGHTNESS: Final = 0.3
CONTRAST: Final = 0.2
SATURATION: Final = 0.3
HUE: Final = 0.2
BLUR: Final = 2.0
AMPLITUDE: Final = 7.0
PERIODS: Final = 5


def perturbation(
    subject: Subject,
    sample: Sample,
    outputs: Outputs,
    pieces: list[Piece],
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Perturbation]:
    """Perturb the pixels inside the box of every first piece of evidence, and those outside.

    `outputs` are those of the unchanged pictures. The figure is the drop of the similarity at the evidence's cell, as a
    share of what it was. Calls `advance(1)` after each piece.
    """
    drops: dict[int, list[NDArray[np.float64]]] = {}
    counts: dict[int, NDArray[np.int64]] = {}
    for piece in pieces:
        prototype, cell = int(piece.prototypes[0]), int(piece.cells[0])
        before, _ = similarity_at(outputs, piece.image, prototype, cell)
        box = subject.box(cell)
        inside = region([box], subject.size)
        picture = sample.arrays[piece.image]
        changed = subject.run(
            np.concatenate(
                [combined(perturbed(picture, kind, box), picture, np.stack([inside, ~inside])) for kind in KINDS]
            )
        )
        found, count = np.full((len(KINDS), 2), np.nan), np.zeros((len(KINDS), 2), dtype=np.int64)
        for row in range(2 * len(KINDS)):
            after, _, bounded = similarity_after(changed, row, prototype, cell, before)
            found[row // 2, row % 2] = relative_drop(before, after)
            count[row // 2] += (bounded, np.isnan(after))
        drops.setdefault(piece.level, []).append(found)
        counts[piece.level] = counts.get(piece.level, 0) + count
        advance(1)
    result = []
    for level in levels_of(pieces):
        rows = np.stack(drops[level])  # [pieces, kinds, inside or outside]
        # The mean over the kinds; NaN where one of them is not known.
        rows = np.concatenate([rows, rows.mean(axis=1, keepdims=True)], axis=1)
        numbers = [*counts[level].tolist(), counts[level].sum(axis=0).tolist()]
        for place, kind in enumerate((*KINDS, ALL)):
            bounded_rows, unknown = numbers[place]
            result.append(
                Perturbation(
                    level=level,
                    kind=kind,
                    drop=compare_known(rows[:, place, 0], rows[:, place, 1], seed),
                    bounded=bounded_rows,
                    unknown=unknown,
                )
            )
    return result


def relative_drop(before: float, after: float) -> float:
    """The share of a similarity that is lost; negative if it rose, NaN if `before` is about 0.

    >>> relative_drop(2.0, 1.5)
    0.25
    """
    return 1 - after / before if abs(before) >= SMALLEST else float("nan")


def perturbed(picture: NDArray[np.uint8], kind: PerturbationKind, box: Box) -> NDArray[np.uint8]:
    """Return the whole picture, uint8 [height, width, 3], perturbed; the `box` sets the length of the waves."""
    image = Image.fromarray(picture)
    if kind == "brightness":
        return np.asarray(ImageEnhance.Brightness(image).enhance(BRIGHTNESS))
    if kind == "contrast":
        return np.asarray(ImageEnhance.Contrast(image).enhance(CONTRAST))
    if kind == "saturation":
        return np.asarray(ImageEnhance.Color(image).enhance(SATURATION))
    if kind == "hue":
        turned = np.array(image.convert("HSV"))
        turned[..., 0] += np.uint8(round(HUE * 255))  # wraps, as hue does
        return np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))
    if kind == "blur":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(BLUR)))
    return waves(picture, max(box[2] - box[0], box[3] - box[1]))


def waves(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Shift every row, then every column, along a sine that has `PERIODS` periods in `side` pixels; what leaves the
    picture comes back at the other edge."""
    height, width = picture.shape[:2]
    rows, columns = np.arange(height), np.arange(width)
    down, across = (
        np.trunc(AMPLITUDE * np.sin(2 * np.pi * places * PERIODS / side)).astype(np.int64) for places in (columns, rows)
    )
    shifted = picture[rows[:, None], (columns[None, :] - across[:, None]) % width]
    return np.asarray(shifted[(rows[:, None] - down[None, :]) % height, columns[None, :]])

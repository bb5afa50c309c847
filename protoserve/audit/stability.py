"""Stability: does the evidence show the same parts after a little noise? (Huang et al. 2023)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.intervals import compare
from protoserve.audit.masks import Masks
from protoserve.audit.sample import Sample
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import Stability
from protoserve.inference.engine import Outputs
from protoserve.schema import Box

# Normal noise and its limit, in units of ImageNet's standard deviations per channel, and these in 0..255.
NOISE: Final = 0.2
LIMIT: Final = 0.25
DEVIATION: Final = 255 * np.array([0.229, 0.224, 0.225])
# The side of the region whose parts count, as a share of the picture's sides: 72 of 224 pixels in the paper.
REGION: Final = 0.32


def stability(
    subject: Subject,
    sample: Sample,
    masks: Masks,
    outputs: Outputs,
    pieces: list[Piece],
    seed: int,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Stability]:
    """Compare the parts around the best cell of every first prototype before and after noise.

    The region is centred at the cell's box. Evidence whose region shows no part is left out, because a prototype on the
    background is perfectly stable. The baseline is the share of all cells that show the same parts. Calls
    `advance(images)` after each batch.
    """
    generator = np.random.default_rng([seed, 5])
    noise = np.clip(generator.normal(0, NOISE, sample.arrays.shape), -LIMIT, LIMIT) * DEVIATION
    noisy = np.clip(np.rint(sample.arrays + noise), 0, 255).astype(np.uint8)
    after = subject.run(noisy, advance)
    rows: dict[int, list[tuple[float, float]]] = {}
    shown: dict[int, NDArray[np.int64] | None] = {}
    for piece in pieces:
        image = piece.image
        if image not in shown:
            shown[image] = _parts_at_cells(subject, sample, masks, image)
        parts = shown[image]
        if parts is None or not (before := parts[piece.cells[0]]):
            continue
        same = parts == before
        rows.setdefault(piece.level, []).append(
            (float(same[after.cell[image, piece.prototypes[0]]]), float(same.mean()))
        )
    result = []
    for level in levels_of(pieces):
        if level in rows:
            measured, baseline = np.array(rows[level]).T
            result.append(Stability(level=level, same_parts=compare(measured, baseline, seed)))
    return result


def parts_within(mask: NDArray[np.uint8], box: Box, share: float = REGION) -> frozenset[int]:
    """Return the parts that the mask shows in the region of `share` of its sides around a box's centre."""
    height, width = mask.shape
    left, top, right, bottom = box
    half_width, half_height = share * width / 2, share * height / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    first_row, last_row = max(0, round(y - half_height)), round(y + half_height)
    first_column, last_column = max(0, round(x - half_width)), round(x + half_width)
    return frozenset(np.unique(mask[first_row:last_row, first_column:last_column]).tolist()) - {0}


def _parts_at_cells(subject: Subject, sample: Sample, masks: Masks, image: int) -> NDArray[np.int64] | None:
    """Number the sets of parts that the cells of an image show: int64 [cells], 0 for none; None without a mask."""
    geometry = sample.geometries[image]
    mask = masks.read(sample.names[image], (geometry.picture_height, geometry.picture_width))
    if mask is None:
        return None
    numbers: dict[frozenset[int], int] = {frozenset(): 0}
    regions = [parts_within(mask, subject.box_in(geometry, cell)) for cell in range(subject.cells)]
    return np.array([numbers.setdefault(region, len(numbers)) for region in regions], dtype=np.int64)

"""Boxes from attributions: where a network without boxes would draw them, at the area of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from protoserve.schema import Box


def strongest_boxes(attribution: NDArray[np.float64], boxes: Sequence[Box]) -> Iterator[int]:
    """Yield the places in `boxes` in the order in which an attribution [height, width] chooses them.

    The next box is the one over which the sum of the attribution is the largest; of equal ones, the first. Then the
    attribution inside it counts as 0, so that the boxes after it tell something new. Sums are signed, because pixels
    that speak against a node are no evidence for it.

    >>> list(strongest_boxes(np.array([[0.0, 5.0, 4.0, 3.0]]), [(0, 0, 2, 1), (1, 0, 3, 1), (2, 0, 4, 1)]))
    [1, 2, 0]
    """
    rest = attribution.astype(np.float64).copy()
    left, top, right, bottom = np.array(boxes).T
    waiting = np.ones(len(boxes), dtype=np.bool_)
    while waiting.any():
        # Sums over boxes from the sums over all rectangles that start at the corner (Crow 1984).
        corner = np.pad(rest, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
        sums = corner[bottom, right] - corner[top, right] - corner[bottom, left] + corner[top, left]
        # Rounding must not decide between equal sums.
        place = int(np.argmax(np.where(waiting, np.round(sums, 9), -np.inf)))
        rest[top[place] : bottom[place], left[place] : right[place]] = 0
        waiting[place] = False
        yield place


def regions_of_area(order: Sequence[Box], areas: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return, for each of `areas` (pixels, rising), a union of the first boxes of exactly this area: bool [areas,
    height, width].

    The last box is cut to its pixels nearest to its centre. If all boxes cover fewer, the union of all of them.
    """
    whole = np.zeros(size, dtype=np.bool_)
    regions, used = [], 0
    for area in areas:
        while used < len(order) and _with(whole, order[used]).sum() <= area:
            whole = _with(whole, order[used])
            used += 1
        region = whole.copy()
        if used < len(order) and (missing := area - int(whole.sum())) > 0:
            left, top, right, bottom = order[used]
            rows, columns = np.nonzero(_with(whole, order[used]) & ~whole)
            down, across = rows + 0.5 - (top + bottom) / 2, columns + 0.5 - (left + right) / 2
            nearest = np.argsort(np.maximum(np.abs(down), np.abs(across)), kind="stable")[:missing]
            region[rows[nearest], columns[nearest]] = True
        regions.append(region)
    return np.stack(regions)


def _with(region: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    left, top, right, bottom = box
    joined = region.copy()
    joined[top:bottom, left:right] = True
    return joined

"""Consistency: does a prototype keep to one part of the object? (Huang et al. 2023)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.masks import Masks
from protoserve.audit.sample import Sample
from protoserve.audit.stability import parts_within
from protoserve.audit.subject import Subject
from protoserve.bundle.truth_card import Consistency
from protoserve.inference.engine import Outputs

# A prototype is consistent if its region holds one part in this share of the pictures that show the part.
SHARE: Final = 0.8
# A part that fewer pictures show says nothing about a prototype.
FEWEST: Final = 5


def consistency(
    subject: Subject,
    sample: Sample,
    masks: Masks,
    outputs: Outputs,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Consistency]:
    """Count, at the level of their nodes, the prototypes that keep to one part in the pictures of their node.

    The region is `REGION` of the picture's sides around the best cell's box. Prototypes whose node's pictures show no
    part `FEWEST` times are left out, and so are levels without any other. Beside it stands the share if every picture
    had the best cell of the next picture of the prototype's node: it keeps where a prototype fires, but not on what.
    Calls `advance(1)` after each image.
    """
    shown: dict[int, frozenset[int]] = {}
    regions: dict[int, list[frozenset[int]]] = {}
    for image, geometry in enumerate(sample.geometries):
        mask = masks.read(sample.names[image], (geometry.picture_height, geometry.picture_width))
        if mask is not None:
            shown[image] = frozenset(np.unique(mask).tolist()) - {0}
            regions[image] = [parts_within(mask, subject.box_in(geometry, cell)) for cell in range(subject.cells)]
        advance(1)
    tree = subject.taxonomy
    levels: dict[int, list[tuple[bool, bool]]] = {}
    for prototype, child in enumerate(subject.table.prototype_child.tolist()):
        own = [image for image in shown if tree.leaves_below[child, sample.leaves[image]]]
        cells: NDArray[np.int64] = outputs.cell[own, prototype]
        rows = [
            keeps_to_a_part((shown[image], regions[image][cell]) for image, cell in zip(own, at.tolist(), strict=True))
            for at in (cells, np.roll(cells, 1))
        ]
        found, shuffled = rows
        if found is not None and shuffled is not None:
            levels.setdefault(len(tree.nodes[child]), []).append((found, shuffled))
    return [
        Consistency(level=level, prototypes=len(rows), consistent=float(found), shuffled=float(shuffled))
        for level, rows in sorted(levels.items())
        for found, shuffled in [np.mean(rows, axis=0)]
    ]


def keeps_to_a_part(pictures: Iterable[tuple[frozenset[int], frozenset[int]]]) -> bool | None:
    """Return whether a prototype keeps to one part, from the parts that each picture shows and those that the
    prototype's region in it holds; None if no part is shown `FEWEST` times.

    >>> keeps_to_a_part([(frozenset({1, 2}), frozenset({1}))] * 4 + [(frozenset({1}), frozenset({2}))])
    True
    """
    visible: Counter[int] = Counter()
    held: Counter[int] = Counter()
    for shown, within in pictures:
        visible.update(shown)
        held.update(shown & within)
    shares = [held[part] / count for part, count in visible.items() if count >= FEWEST]
    return max(shares) >= SHARE if shares else None

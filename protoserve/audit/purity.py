"""Purity: do the patches that a prototype finds most similar show the same part? (PIP-Net, Nauta et al. 2023)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.masks import Masks
from protoserve.audit.stability import parts_within
from protoserve.audit.subject import Subject
from protoserve.bundle.truth_card import PartPurity
from protoserve.images.geometry import Geometry

# The patches of a prototype that count: those with the highest similarities, one a picture.
PATCHES: Final = 10
# The side of a patch, as a share of the picture's sides: 32 of 224 pixels.
PATCH: Final = 32 / 224


class Nearest:
    """The `PATCHES` pictures that are most similar to every prototype, and their best cells, over pictures that come in
    batches."""

    def __init__(self, prototypes: int) -> None:
        self.similarity = np.full((PATCHES, prototypes), -np.inf, dtype=np.float32)
        self.image = np.full((PATCHES, prototypes), -1, dtype=np.int64)
        self.cell = np.full((PATCHES, prototypes), -1, dtype=np.int64)

    def add(self, similarity: NDArray[np.float32], cell: NDArray[np.int64], images: Sequence[int]) -> None:
        """Add pictures: their highest similarities and best cells, both [pictures, prototypes], and their numbers."""
        every = np.concatenate([self.similarity, similarity])
        # Stable, so that of equal similarities the first picture counts.
        order = np.argsort(-every, axis=0, kind="stable")[:PATCHES]
        numbers = np.broadcast_to(np.array(images, dtype=np.int64)[:, None], similarity.shape)
        self.similarity, self.image, self.cell = (
            np.take_along_axis(both, order, axis=0)
            for both in (every, np.concatenate([self.image, numbers]), np.concatenate([self.cell, cell]))
        )


def purity(
    subject: Subject,
    masks: Masks,
    names: Sequence[str],
    geometries: Mapping[int, Geometry],
    nearest: Nearest,
    split: str,
    advance: Callable[[int], None] = lambda images: None,
) -> list[PartPurity]:
    """Measure the purity of all prototypes, at the level of their nodes.

    `names` are all pictures of the `split`; `geometries` are those of the pictures that have a mask, by number, from
    which `nearest` was made. Beside it stands the purity if each of a prototype's pictures had the best cell of the
    next one. Calls `advance(1)` after each picture of `geometries`.
    """
    patches = [_patches(nearest, prototype) for prototype in range(nearest.image.shape[1])]
    asked: dict[int, set[int]] = {}
    for image, cell, other in (patch for own in patches for patch in own):
        asked.setdefault(image, set()).update((cell, other))
    parts: dict[tuple[int, int], frozenset[int]] = {}
    for image, geometry in geometries.items():
        if image in asked:
            mask = masks.read(names[image], (geometry.picture_height, geometry.picture_width))
            assert mask is not None
            for cell in asked[image]:
                parts[image, cell] = parts_within(mask, subject.box_in(geometry, cell), PATCH)
        advance(1)
    tree = subject.taxonomy
    levels: dict[int, list[tuple[float, float]]] = {}
    for child, own in zip(subject.table.prototype_child.tolist(), patches, strict=True):
        if own:
            shares = (
                share_of_one_part(parts[image, cell] for image, cell, _ in own),
                share_of_one_part(parts[image, other] for image, _, other in own),
            )
            levels.setdefault(len(tree.nodes[child]), []).append(shares)
    return [
        PartPurity(level=level, prototypes=len(shares), pure=float(pure), shuffled=float(chance), split=split)
        for level, shares in sorted(levels.items())
        for pure, chance in [np.mean(shares, axis=0)]
    ]


def _patches(nearest: Nearest, prototype: int) -> list[tuple[int, int, int]]:
    """The pictures that are most similar to a prototype, with their own best cells and those of the next picture."""
    known = nearest.image[:, prototype] >= 0
    images, cells = (numbers[known, prototype] for numbers in (nearest.image, nearest.cell))
    return list(zip(images.tolist(), cells.tolist(), np.roll(cells, -1).tolist(), strict=True))


def share_of_one_part(patches: Iterable[frozenset[int]]) -> float:
    """Return the share of the patches, given as the parts that they hold, that hold the part that most of them hold.

    >>> share_of_one_part([frozenset({1, 2}), frozenset({2}), frozenset({3}), frozenset()])
    0.5
    """
    held: Counter[int] = Counter()
    count = 0
    for patch in patches:
        held.update(patch)
        count += 1
    return max(held.values(), default=0) / count

"""Locality under attack: pixels outside the box, changed by projected gradient ascent (Sacha et al. 2024).

The network of the bundle's run gives the gradients. What the attack changes is measured on the exported graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.locality import Changes
from protoserve.audit.regions import region
from protoserve.audit.sample import Sample
from protoserve.audit.stability import DEVIATION
from protoserve.audit.subject import Piece, Subject, levels_of
from protoserve.bundle.truth_card import Locality
from protoserve.inference.engine import Outputs
from protoserve.schema import Box

# The paper's settings: how far a pixel may move and how far it moves in a step, in units of ImageNet's standard
# deviations, the number of steps, and the margin around the box in pixels.
LIMIT: Final = 0.4
STEP: Final = 0.01
STEPS: Final = 40
MARGIN: Final = 10
# Pieces that are attacked side by side; each outside and inside its box.
_PIECES: Final = 8


class SupportsGradient(Protocol):
    """What an attack needs of a network."""

    def distance_gradient(
        self, images: NDArray[np.float32], prototypes: NDArray[np.int64], cells: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the gradient [N, height, width, 3] of the squared distance between a cell of every image and a
        prototype with respect to the image.

        `images` are float32 RGB [N, height, width, 3] at model size, 0..255; `prototypes` and `cells` are int64 [N].
        """


def attacked_locality(
    subject: Subject,
    sample: Sample,
    outputs: Outputs,
    pieces: list[Piece],
    seed: int,
    network: SupportsGradient,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Locality]:
    """Attack every first piece of evidence from outside its box and `MARGIN` pixels around it.

    `outputs` are those of the unchanged pictures. The baseline attacks the pixels inside the box. Calls `advance(n)`
    after n pieces.
    """
    generator = np.random.default_rng([seed, 6])
    found: dict[int, Changes] = {}
    for start in range(0, len(pieces), _PIECES):
        batch = pieces[start : start + _PIECES]
        first = [(int(piece.prototypes[0]), int(piece.cells[0])) for piece in batch]
        regions = []
        for _, cell in first:
            box = subject.box(cell)
            regions += [~region([grown(box, subject.size)], subject.size), region([box], subject.size)]
        prototypes, cells = np.repeat(np.array(first, dtype=np.int64), 2, axis=0).T
        pictures = np.repeat(sample.arrays[[piece.image for piece in batch]], 2, axis=0)
        changed = attacked(network, pictures, prototypes, cells, np.stack(regions), generator)
        for place, piece in enumerate(batch):
            answers = subject.run(changed[2 * place : 2 * place + 2])
            found.setdefault(piece.level, Changes()).add(subject, sample, outputs, answers, piece)
        advance(len(batch))
    return [found[level].summary(level, "attack", seed) for level in levels_of(pieces)]


def attacked(
    network: SupportsGradient,
    pictures: NDArray[np.uint8],
    prototypes: NDArray[np.int64],
    cells: NDArray[np.int64],
    regions: NDArray[np.bool_],
    generator: np.random.Generator,
) -> NDArray[np.uint8]:
    """Move the pixels of the regions [N, height, width] so that the distance between prototype and cell grows.

    Projected gradient ascent (Madry et al. 2018): each step moves every value by `STEP` in the direction of the
    gradient's sign, at most to `LIMIT` from where it was, and stays in 0..255. A value of which the picture's distance
    has no gradient starts at a random place within the limit, so that the attack changes it, too. Values are rounded at
    the end.
    """
    limit, step = (share * DEVIATION.astype(np.float32) for share in (LIMIT, STEP))
    original = pictures.astype(np.float32)
    inside = regions[..., None]
    lowest, highest = np.maximum(original - limit, 0), np.minimum(original + limit, 255)
    flat = inside & (network.distance_gradient(original, prototypes, cells) == 0)
    start = original + limit * generator.uniform(-1, 1, original.shape).astype(np.float32)
    images = np.where(flat, np.clip(start, lowest, highest), original)
    for _ in range(STEPS):
        direction: NDArray[Any] = np.sign(network.distance_gradient(images, prototypes, cells))
        images = np.where(inside, np.clip(images + step * direction, lowest, highest), original)
    return np.rint(images).astype(np.uint8)


def grown(box: Box, size: tuple[int, int]) -> Box:
    """Return a box with `MARGIN` pixels around it, as far as the picture of `size` (height, width) goes.

    >>> grown((4, 20, 12, 28), (32, 32))
    (0, 10, 22, 32)
    """
    left, top, right, bottom = box
    height, width = size
    return max(0, left - MARGIN), max(0, top - MARGIN), min(width, right + MARGIN), min(height, bottom + MARGIN)

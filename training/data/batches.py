"""Batches of images and their order within an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def epoch_order(count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A random permutation of `count` images that depends only on the seed."""
    return np.random.default_rng(seed).permutation(count)


def slices(order: NDArray[np.int64], size: int) -> Iterator[NDArray[Any]]:
    """Consecutive pieces of `size` items; the last may be shorter."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def epoch_batches(images: int, size: int, seed: tuple[int, ...]) -> Iterator[tuple[NDArray[np.int64], float]]:
    """The batches of an epoch, as (image numbers, share of the epoch before the batch).

    The images are in a random order that depends only on the seed.
    """
    order = epoch_order(images, seed)
    for index, numbers in enumerate(slices(order, size)):
        yield numbers, index * size / len(order)

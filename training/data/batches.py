"""Batches of images: their order within an epoch, and consecutive pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


def epoch_order(count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A random order of `count` images that depends on the seed alone."""
    return np.random.default_rng(seed).permutation(count)


def slices(order: NDArray[np.int64], size: int) -> Iterator[NDArray[Any]]:
    """Consecutive pieces of an order."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def epoch_batches(images: int, size: int, seed: tuple[int, ...]) -> Iterator[tuple[NDArray[np.int64], float]]:
    """The numbers of the images in every batch of an epoch, in a random order that depends on the seed alone, with the
    share of the epoch done before it."""
    order = epoch_order(images, seed)
    for place, numbers in enumerate(slices(order, size)):
        yield numbers, place * size / len(order)

"""Batches of images: their order within an epoch, and consecutive pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import Config


def epoch_order(count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A random order of `count` images that depends on the seed alone."""
    return np.random.default_rng(seed).permutation(count)


def slices(order: NDArray[np.int64], size: int) -> Iterator[NDArray[Any]]:
    """Consecutive pieces of an order."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def epoch_batches(leaves: NDArray[np.int64], config: Config, step: int) -> Iterator[tuple[NDArray[np.int64], float]]:
    """The image numbers of every batch of an epoch in random order, with the share of the epoch done before it."""
    order = epoch_order(len(leaves), (config.seed, step))
    for start, numbers in enumerate(slices(order, config.batch)):
        yield numbers, start * config.batch / len(order)

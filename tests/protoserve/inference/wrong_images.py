"""Changes to images [N, height, width, 3] that make them unfit for a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Change: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[Any]]


def as_floats(images: NDArray[np.uint8]) -> NDArray[Any]:
    """The same values in another type."""
    return images.astype(np.float32)


def without_batch(images: NDArray[np.uint8]) -> NDArray[Any]:
    """One image without its first dimension."""
    return np.asarray(images[0])


def empty_batch(images: NDArray[np.uint8]) -> NDArray[Any]:
    """No image."""
    return images[:0]


def lower(images: NDArray[np.uint8]) -> NDArray[Any]:
    """One row of pixels less."""
    return images[:, :-1]


def two_channels(images: NDArray[np.uint8]) -> NDArray[Any]:
    """Red and green alone."""
    return images[..., :2]


CHANGES: tuple[Change, ...] = (as_floats, without_batch, empty_batch, lower, two_channels)

"""Means over images with bootstrap intervals (Efron 1979), and paired comparisons."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.truth_card import Comparison, Estimate

RESAMPLES: Final = 2000
_QUANTILES: Final = (0.025, 0.975)
# Bounds the memory of the resampling counts, [resamples, images].
_CHUNK: Final = 100


def compare(measured: NDArray[np.floating[Any]], baseline: NDArray[np.floating[Any]], seed: int) -> Comparison:
    """Compare two figures of the same images, both float [images], without NaN.

    The intervals are percentiles of `RESAMPLES` bootstrap means; all three use the same resamples, so that the
    difference is paired. Raises ValueError without images.

    >>> compare(np.array([2.0, 4.0]), np.array([1.0, 3.0]), seed=0).difference
    Estimate(mean=1.0, low=1.0, high=1.0, images=2)
    """
    if not len(measured):
        raise ValueError("a comparison needs at least one image")
    first, second = measured.astype(np.float64), baseline.astype(np.float64)
    estimates = _estimates(np.stack([first, second, first - second], axis=1), seed)
    return Comparison(measured=estimates[0], baseline=estimates[1], difference=estimates[2])


def compare_known(
    measured: NDArray[np.floating[Any]], baseline: NDArray[np.floating[Any]], seed: int
) -> Comparison | None:
    """Compare as `compare` does, without the images at which either is NaN; returns None if none remains."""
    known = ~(np.isnan(measured) | np.isnan(baseline))
    return compare(measured[known], baseline[known], seed) if known.any() else None


def _estimates(values: NDArray[np.float64], seed: int) -> list[Estimate]:
    """Estimate the mean of each column of `values` [images, columns]."""
    images, columns = values.shape
    generator = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, columns))
    for start in range(0, RESAMPLES, _CHUNK):
        # How often each image occurs in a resample follows a multinomial distribution.
        counts = generator.multinomial(images, np.full(images, 1 / images), size=_CHUNK)
        means[start : start + _CHUNK] = counts @ values / images
    low, high = np.quantile(means, _QUANTILES, axis=0)
    return [
        Estimate(mean=float(mean), low=float(bottom), high=float(top), images=images)
        for mean, bottom, top in zip(values.mean(axis=0), low, high, strict=True)
    ]

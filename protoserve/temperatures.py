"""Calibration: a temperature per group of competing nodes, fitted on labelled pictures (Guo et al. 2017).

A parent may have only a few pictures. Its maximum-likelihood temperature is then noise; it is 0 if all of them
are classified correctly. So this is a hierarchical model: the log-temperatures of the parents are draws from a normal
distribution, whose mean and spread are estimated from all parents, and each parent gets its posterior mean. A parent
with many images is fitted by them; one with few is shrunk towards the others. A single parent gets its
maximum-likelihood temperature, up to a weak prior on the mean. All integrals are sums over a grid, so nothing has to
converge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Candidate log-temperatures (temperatures from 1/20 to 20), and candidate spreads around their mean.
GRID = np.linspace(-3.0, 3.0, 241)
SPREADS = np.array([0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8])
# Leaf accuracy on the selection images that calibration may cost. Sharper conditionals at the upper levels make the
# most probable path depend more on its first steps.
TOLERANCE = 0.01
# Standard deviation of the prior on the mean log-temperature: within a factor e of 1. Without it, the estimate would
# diverge if, for example, all images are classified correctly.
MEAN_SPREAD = 1.0


class Temperatures(NamedTuple):
    """Posterior means: `groups` float64 [groups] of each group's temperature, `common` of the common temperature, and
    `spread` of the standard deviation of the log-temperatures around its logarithm."""

    groups: NDArray[np.float64]
    common: float
    spread: float


def fit_temperatures(logits: Sequence[NDArray[np.floating[Any]]], targets: Sequence[NDArray[np.int64]]) -> Temperatures:
    """Fit the temperatures of groups of competing nodes.

    `logits[g]` [images, members] are the logits of group g for the images below its parent, if any. `targets[g]` int
    [images] are their true members.
    """
    likelihood = np.stack([_log_likelihood(*pair) for pair in zip(logits, targets, strict=True)], axis=1)
    # Limit the exponent: far from the best temperature, exp would underflow to 0, whose logarithm is −∞.
    likelihood = np.exp(np.maximum(likelihood - likelihood.max(axis=0), -600.0))
    # [spreads, means, grid]: the density of a group's log-temperature, normalised over the grid.
    prior = -((GRID[None, None, :] - GRID[None, :, None]) ** 2) / (2 * SPREADS[:, None, None] ** 2)
    prior = np.exp(prior - prior.max(axis=2, keepdims=True))
    prior /= prior.sum(axis=2, keepdims=True)
    evidence = prior @ likelihood  # [spreads, means, groups]
    expected = prior @ (likelihood * GRID[:, None]) / evidence
    weight = np.log(evidence).sum(axis=2) - GRID**2 / (2 * MEAN_SPREAD**2)
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    return Temperatures(
        np.exp((weight[:, :, None] * expected).sum(axis=(0, 1))),
        float(np.exp((weight.sum(axis=0) * GRID).sum())),
        float((weight.sum(axis=1) * SPREADS).sum()),
    )


def shrinkage_path(fitted: Temperatures) -> list[NDArray[np.float64]]:
    """Temperatures [groups] to try in turn: each group's own, halfway to the common one, the common one, halfway from
    there to 1, and 1 (halfway on the logarithmic scale)."""
    own = np.log(fitted.groups)
    common = np.full_like(own, np.log(fitted.common))
    return [np.exp(logarithm) for logarithm in (own, (own + common) / 2, common, common / 2, 0 * common)]


def tolerated(images: int) -> float:
    """The accuracy that calibration may cost on this number of selection images: `TOLERANCE`, but at least one image,
    with a margin for rounding."""
    return max(TOLERANCE, 1.0 / images) + 1e-9


def _log_likelihood(logits: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """[grid]: the log-likelihood of the true members at every log-temperature."""
    # Softmax ignores a constant; a maximum of 0 prevents overflow.
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    own = shifted[np.arange(len(targets)), targets]
    return np.array(
        [(own * inverse - np.log(np.exp(shifted * inverse).sum(axis=1))).sum() for inverse in np.exp(-GRID).tolist()]
    )

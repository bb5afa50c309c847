"""How many pieces of evidence prove a node: the fewest prototypes from whose similarities it follows.

A node *follows* from the similarities of some prototypes if its logit exceeds every sibling's whatever the other
similarities might be within their bounds. This is an abductive explanation of one level (ALE, arXiv 2511.16588, names
the problem for prototype networks). For each sibling, the difference of the logits is linear in the similarities, so
its least value with some of them known is a sum, and the fewest prototypes solve a covering problem with a row per
sibling.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.manifest import GraphRecord
from protoserve.inference.last_layers import GroupLayer

# The sets of prototypes that the search extends at most, so that an answer never waits for it.
_EXTENDED: Final = 64


def similarity_bounds(graph: GraphRecord) -> tuple[float, float]:
    """Return the smallest and the largest similarity that a graph's formula can give.

    The formulas are those of `protoserve.networks.similarity`; all fall with the squared distance d ≥ 0. The largest is
    that of d = 0. The smallest of the logarithms is their limit for d → ∞, which holds for any latent space; that of
    the cosine is at d = 4. The negative distance has neither: its references are unknown here.
    """
    zero, epsilon = graph.zero, graph.epsilon
    if graph.similarity == "log1p":
        shift = 0.0 if zero is None else math.log1p(1.0 / (zero + epsilon))
        return -shift, math.log1p(1.0 / epsilon) - shift
    if graph.similarity == "log-ratio":
        shift = 0.0 if zero is None else math.log((zero + 1.0) / (zero + epsilon))
        return -shift, -math.log(epsilon) - shift
    if graph.similarity == "cosine":
        shift = 0.0 if zero is None else 1.0 - 0.5 * zero
        return -1.0 - shift, 1.0 - shift
    return -math.inf, math.inf


def sufficient_pieces(
    layer: GroupLayer,
    row: int,
    similarity: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    limit: int,
) -> int | None:
    """Return the size of the smallest set of prototypes from which the member `row` of a group follows.

    `similarity`, `low` and `high` float64 [n] are the similarities of the layer's prototypes and their bounds, which
    may be infinite. None if no set of at most `limit` prototypes suffices. The search stops after a fixed number of
    steps; then the number is that of the smallest set it has found, and None if it has found none.
    """
    # Priors are weights times usual similarities, so these are the logits.
    logits = layer.weight @ similarity
    others = np.concatenate([np.arange(row), np.arange(row + 1, len(logits))])
    # The strongest rival usually decides; large groups are rejected without a look at the others.
    rival = others[[int(logits[others].argmax())]]
    for rows in (rival, others):
        slope = layer.weight[row] - layer.weight[rows]
        gain, need = _cover(slope, logits[row] - logits[rows], similarity, low, high)
        if _is_out_of_reach(gain, need, limit):
            return None
        if len(others) == 1:
            break
    unmet = need >= 0
    return _fewest(gain[unmet], need[unmet], limit) if unmet.any() else 0


def _cover(
    slope: NDArray[np.float64],
    lead: NDArray[np.float64],
    similarity: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What knowing each prototype adds to the least lead over each rival, float64 [rivals, n] ≥ 0, and the sum that
    must be exceeded, [rivals]. `slope` [rivals, n] are the differences of weights, `lead` [rivals] those of logits."""
    worst = np.where(slope > 0, low, high)
    # A similarity beyond its bound by rounding adds 0.
    if np.isfinite(worst).all():
        gain = np.maximum(slope * (similarity - worst), 0.0)
    else:
        # Equal weights matter not, also where the bounds are infinite.
        gain = np.multiply(slope, similarity - worst, out=np.zeros_like(slope), where=slope != 0)
        gain = np.maximum(gain, 0.0)
        # Without a bound, every prototype that matters must be known: it adds more than all others can make up for.
        infinite = np.isinf(gain)
        rest = np.where(infinite, 0.0, gain).sum(axis=1)
        gain = np.where(infinite, (4.0 * (1.0 + np.abs(lead) + rest))[:, None], gain)
    return gain, gain.sum(axis=1) - lead


def _at_least(gain: NDArray[np.float64], need: NDArray[np.float64]) -> int:
    """The fewest prototypes that any set must have: for each row, its largest gains until they exceed its need."""
    most = -np.sort(-gain, axis=1).cumsum(axis=1)
    counts = np.where(need < 0, 0, 1 + (most <= need[:, None]).sum(axis=1))
    return int(counts.max())


def _is_out_of_reach(gain: NDArray[np.float64], need: NDArray[np.float64], limit: int) -> bool:
    """Whether `_at_least` is above the limit, found without sorting."""
    count = gain.shape[1]
    if limit < count:
        gain = np.partition(gain, count - limit - 1, axis=1)[:, count - limit :]
    return bool(((gain.sum(axis=1) <= need) & (need >= 0)).any())


def _fewest(gain: NDArray[np.float64], need: NDArray[np.float64], limit: int) -> int | None:
    useful = gain.any(axis=0)
    gain = gain[:, useful]
    order = np.argsort(-(gain / np.maximum(need, 1e-12)[:, None]).clip(max=1.0).sum(axis=0), kind="stable")
    gain = gain[:, order]
    greedy = _greedy(gain, need, limit)
    # Only sets smaller than the greedy one are worth a search.
    smallest = limit if greedy is None else greedy - 1
    steps = _EXTENDED
    for size in range(_at_least(gain, need), smallest + 1):
        found, steps = _exists(gain, need, size, steps)
        if found:
            return size
        if steps <= 0:
            break
    return greedy


def _greedy(gain: NDArray[np.float64], need: NDArray[np.float64], limit: int) -> int | None:
    """The size of a set that suffices, which takes in turn what closes most of the remaining needs; None above the
    limit."""
    left, free = need.copy(), np.ones(gain.shape[1], dtype=np.bool_)
    for size in range(1, min(limit, gain.shape[1]) + 1):
        unmet = left >= 0
        closed = np.minimum(gain[unmet], left[unmet, None] + 1e-12).sum(axis=0)
        best = int(np.where(free, closed, -1.0).argmax())
        left -= gain[:, best]
        free[best] = False
        if (left < 0).all():
            return size
    return None


def _exists(gain: NDArray[np.float64], need: NDArray[np.float64], size: int, steps: int) -> tuple[bool, int]:
    """Whether `size` columns of `gain` exceed `need`, and the steps that are left; 0 or fewer means undecided."""
    if size == 1:
        return bool((gain > need[:, None]).all(axis=0).any()), steps
    if size == 2:
        first, second = np.triu_indices(gain.shape[1], 1)
        return bool((gain[:, first] + gain[:, second] > need[:, None]).all(axis=0).any()), steps - 1
    for column in range(gain.shape[1] - size + 1):
        rest, left = gain[:, column + 1 :], need - gain[:, column]
        if _at_least(gain[:, column:], need) > size:
            return False, steps
        steps -= 1
        if _at_least(rest, left) <= size - 1:
            found, steps = _exists(rest, left, size - 1, steps)
            if found:
                return True, steps
        if steps <= 0:
            return False, steps
    return False, steps

"""The threshold behind an answer: the smallest that keeps the stated precision, with a finite-sample guarantee.

**The rule.** A picture's *answer* is the deepest node of its predicted path that is known and whose probability is at
least λ. If even level 1 is below λ, there is no answer.

**The promise.** Among pictures that get an answer, the share of those whose node is on the true path is at least the
stated precision π. It holds with probability 1 − δ (`confidence`) over the draw of the calibration pictures, for
pictures that are drawn like them.

**The test.** λ is found by *learn then test* (Angelopoulos et al. 2021, arXiv:2110.01052) on a fixed grid, so without
an assumption on the network or its probabilities. Of n calibration pictures, N get an answer at λ, and E of these are
wrong. If λ broke the promise, E given N would be binomial with a rate above 1 − π, so P(Binomial(N, 1 − π) ≤ E) is an
exact p-value. The grid is tested from high to low λ. A test starts at a high λ and, in case few pictures reach that,
again at λ = π, each at δ/2; a rejection passes its share on to the next λ (the fallback procedure, Wiens 2003), and the
first λ that is not rejected ends its sequence. So the chance that any λ that breaks the promise passes is at most δ.

Goren, Galil and El-Yaniv (NeurIPS 2024, arXiv:2405.11533) climb the same path until the probability suffices. Their
guarantee counts the root as a right answer; this one counts only pictures that get an answer, which is stricter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# The grid: thresholds whose log-odds fall from 12 to −4 in steps of 0.1.
GRID: Final = 1.0 / (1.0 + np.exp(-np.arange(12.0, -4.05, -0.1)))
# The odds of the first tested threshold, relative to those of the stated precision.
FIRST_ODDS: Final = 8.0


@dataclass(frozen=True)
class Walks:
    """Pictures along their predicted paths.

    `probability` float64 [images, levels] is that of the path's node, 0 below its end; it never rises from level to
    level. `known` int64 [images] is the number of levels through which the picture is known, `right` int64 [images] the
    number of levels at which the path's node is the true one.
    """

    probability: NDArray[np.float64]
    known: NDArray[np.int64]
    right: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.known)

    def rows(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Walks:
        """Return the pictures at `index`."""
        return Walks(self.probability[index], self.known[index], self.right[index])


@dataclass(frozen=True)
class Threshold:
    """The result of `promised_threshold`: `value`, None if no threshold passes; of the `images`, how many get an answer
    at it and how many of these are `wrong`; and the fewest `images` with which any threshold can pass."""

    value: float | None
    images: int
    answered: int
    wrong: int
    least_images: int

    @property
    def too_few(self) -> bool:
        """Whether no threshold could pass, whatever the network's answers."""
        return self.images < self.least_images


def answer_levels(
    probability: NDArray[np.float64], known: NDArray[np.int64], threshold: float | NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the level of each answer, 0 for none: int64 [images], or [images, thresholds] for an array.

    Arguments as in `Walks`.
    """
    levels = np.arange(1, probability.shape[1] + 1)
    reachable = np.where(levels <= known[:, None], probability, -1.0)
    thresholds = np.atleast_1d(np.asarray(threshold))
    # The probability falls along the path, so the levels that pass are the first ones.
    found = (reachable[:, :, None] >= thresholds).sum(axis=1)
    return np.asarray(found if isinstance(threshold, np.ndarray) else found[:, 0])


def promised_threshold(walks: Walks, precision: float, confidence: float, certain_levels: int = 0) -> Threshold:
    """Find the threshold for a stated precision from calibration pictures; see the module.

    Answers at one of the `certain_levels` are those that follow without looking at the picture, such as the root or,
    under an allow-list, the branch that holds all of it. They do not count.
    """
    level = answer_levels(walks.probability, walks.known, GRID)
    given = level > certain_levels
    answered = given.sum(axis=0)
    wrong = (given & (level > walks.right[:, None])).sum(axis=0)
    passing = _last_passing(binomial_tail(wrong, answered, 1.0 - precision), precision, 1.0 - confidence)
    least = least_images(precision, confidence)
    if passing is None:
        return Threshold(None, len(walks), 0, 0, least)
    return Threshold(float(GRID[passing]), len(walks), int(answered[passing]), int(wrong[passing]), least)


def least_images(precision: float, confidence: float) -> int:
    """Return the fewest pictures with which any threshold can pass: all of them answered, and rightly.

    >>> least_images(0.9, 0.95), least_images(0.95, 0.95), least_images(0.99, 0.95)
    (36, 72, 368)
    """
    return math.ceil(math.log((1.0 - confidence) / 2) / math.log(precision))


def binomial_tail(successes: NDArray[np.int64], trials: NDArray[np.int64], rate: float) -> NDArray[np.float64]:
    """Compute P(Binomial(trials, rate) ≤ successes) for each pair, float64 [pairs]; `rate` in (0, 1).

    >>> binomial_tail(np.array([0, 1]), np.array([2, 2]), 0.5).round(4)
    array([0.25, 0.75])
    """
    counts = np.arange(int(successes.max(initial=0)) + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(trials.max(initial=0)) + 1)))])
    chosen = np.minimum(counts, trials[:, None])
    others = trials[:, None] - chosen
    logarithm = factorial[trials][:, None] - factorial[chosen] - factorial[others]
    logarithm = logarithm + chosen * math.log(rate) + others * math.log1p(-rate)
    likely = np.where(counts <= successes[:, None], np.exp(logarithm), 0.0)
    return np.asarray(np.minimum(likely.sum(axis=1), 1.0))


def _last_passing(p_value: NDArray[np.float64], precision: float, risk: float) -> int | None:
    """Return the index in `GRID` of the lowest threshold that passes, None if none does."""
    odds = precision / (1.0 - precision)
    own = np.zeros(len(GRID))
    for start in (FIRST_ODDS * odds, odds):
        own[np.abs(GRID - start / (1.0 + start)).argmin()] += risk / 2
    passing, passed_on = None, 0.0
    for index, value in enumerate(p_value.tolist()):
        level = own[index] + passed_on
        passed_on = level if value <= level else 0.0
        if passed_on > 0:
            passing = index
    return passing

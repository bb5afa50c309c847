"""Novelty: whether a picture's class is missing from the taxonomy, and down to which level the picture is known.

Each group of competing nodes has its own score, which measures how well the picture fits the group. If the score is
less than the group's threshold, the picture is unknown there and at all deeper levels. So a picture may be known as an
apple, but as none of the apples in the taxonomy. The module needs only numpy, so that it runs wherever a bundle does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from protoserve.schema import NoveltyScore
from protoserve.taxonomy import ROOT, Group, Kind, Taxonomy, competing_groups

SCORES: tuple[NoveltyScore, ...] = get_args(NoveltyScore)

# Of a threshold: relative to it, or to 1 if that is larger.
MARGIN = 1e-4
# Replaces −∞, the logarithm of 0, because differences of infinities are NaN.
MIN_LOG_PROBABILITY = np.float32(-1e30)


@dataclass(frozen=True)
class NoveltyTable:
    """The nodes and prototypes of each group.

    `groups` are those of the head, `nodes` is the number of nodes, and `prototype_child` int64 [prototypes] is the node
    of each prototype; it is empty for a plain classifier. `common_weight` float32 [prototypes] is the mean that
    centring subtracted from each prototype's weights; None if logits are as trained.
    """

    groups: tuple[Group, ...]
    nodes: int
    prototype_child: NDArray[np.int64]
    common_weight: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls,
        taxonomy: Taxonomy,
        kind: Kind,
        prototype_child: Sequence[int],
        common_weight: NDArray[np.float32] | None = None,
    ) -> NoveltyTable:
        """Make the table of a network of this `kind`; see `competing_groups`."""
        children = np.array(prototype_child, dtype=np.int64)
        return cls(competing_groups(taxonomy, kind), len(taxonomy.nodes), children, common_weight)

    def group_of(self, kind: Kind) -> NDArray[np.int64]:
        """Return the group that decides whether each node is known, int64 [nodes]: the group in which the node
        competes, −1 for an only child. If all leaves compete at once, their group decides at every level."""
        if kind != "hierarchical":
            return np.zeros(self.nodes, dtype=np.int64)
        node_group = np.full(self.nodes, -1, dtype=np.int64)
        node_group[self.members] = np.repeat(np.arange(len(self.groups)), self.sizes)
        return node_group

    @property
    def available(self) -> tuple[NoveltyScore, ...]:
        """The scores that can be computed; those based on similarities need prototypes."""
        return SCORES if len(self.prototype_child) else ("energy", "probability")

    @cached_property
    def members(self) -> NDArray[np.int64]:
        """The nodes of all groups, one group after the other: int64 [members]."""
        return np.concatenate([np.array(group.children, dtype=np.int64) for group in self.groups])

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The number of members of each group, int64 [groups]."""
        return np.array([len(group.children) for group in self.groups], dtype=np.int64)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """The index of each group's first member in `members`, int64 [groups]."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """The divisor of each member's mean, int64 [members]: its number of prototypes, or 1 if it has none."""
        return np.maximum(np.bincount(self.prototype_child, minlength=self.nodes)[self.members], 1)

    @cached_property
    def by_child(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The prototypes sorted by child, the children with prototypes, and the index of each child's first one."""
        order = np.argsort(self.prototype_child, kind="stable")
        children, offsets = np.unique(self.prototype_child[order], return_index=True)
        return order, children, offsets

    def scores(
        self,
        score: NoveltyScore,
        log_probability: NDArray[np.floating[Any]],
        logit: NDArray[np.floating[Any]],
        similarity: NDArray[np.floating[Any]],
    ) -> NDArray[np.float32]:
        """Compute the scores [images, groups]; a higher score means that a picture fits the group better.

        `log_probability` and `logit` [images, nodes] and `similarity` [images, prototypes] are those of
        `protoserve.inference.engine.Outputs`.

        - `energy`: log Σ exp(logit), the negative free energy at temperature 1 (Liu et al. 2020, eq. 4), of the logits
          as trained. Centring subtracts the same amount from all logits of a group; it is added again here;
        - `similarity`: the highest similarity to any of the group's prototypes;
        - `own-similarity`: the mean similarity to all prototypes of the member with the highest logit;
        - `probability`: the highest conditional probability, as served (Hendrycks & Gimpel 2017);
        - `support`: `own-similarity` × `probability` (divided by it if the similarity is negative). It is high only if
          the network is sure of one member *and* finds most of that member's prototypes.
        """
        if score == "energy":
            return self._log_sum(logit[:, self.members].astype(np.float32)) + self._common(similarity)
        if score == "similarity":
            return np.maximum.reduceat(self._by_member(similarity, np.maximum), self.offsets, axis=1)
        if score == "own-similarity":
            return self._own_similarity(logit, similarity)
        # The members' probabilities add up to their parent's, up to rounding; dividing by the sum gives conditionals.
        finite = np.maximum(log_probability[:, self.members].astype(np.float32), MIN_LOG_PROBABILITY)
        probability = np.exp(np.maximum.reduceat(finite, self.offsets, axis=1) - self._log_sum(finite))
        if score == "probability":
            return np.asarray(probability)
        own = self._own_similarity(logit, similarity)
        return np.where(own < 0, own / probability, own * probability)

    def _common(self, similarity: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return what centring subtracted from the logits of each group [images, groups]; 0 if they are as trained."""
        common = np.zeros((len(similarity), len(self.groups)), dtype=np.float32)
        if self.common_weight is not None:
            group_of = np.empty(self.nodes, dtype=np.int64)
            group_of[self.members] = np.repeat(np.arange(len(self.groups)), self.sizes)
            order = np.argsort(group_of[self.prototype_child], kind="stable")
            groups, starts = np.unique(group_of[self.prototype_child][order], return_index=True)
            common[:, groups] = np.add.reduceat((similarity * self.common_weight)[:, order], starts, axis=1)
        return common

    def _own_similarity(
        self, logit: NDArray[np.floating[Any]], similarity: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """Compute the mean similarity to the prototypes of each group's member with the highest logit: [images,
        groups]."""
        logits = logit[:, self.members]
        highest = np.repeat(np.maximum.reduceat(logits, self.offsets, axis=1), self.sizes, axis=1)
        means = self._by_member(similarity, np.add) / self.counts.astype(np.float32)
        return np.maximum.reduceat(np.where(logits == highest, means, -np.inf), self.offsets, axis=1)

    def _by_member(self, similarity: NDArray[np.floating[Any]], reduction: np.ufunc) -> NDArray[np.float32]:
        """Reduce the similarities to each member's prototypes: [images, members], −∞ for a member without any."""
        order, children, offsets = self.by_child
        reduced = np.full((len(similarity), self.nodes), -np.inf, dtype=np.float32)
        reduced[:, children] = reduction.reduceat(similarity[:, order], offsets, axis=1)
        return reduced[:, self.members]

    def _log_sum(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute log Σ exp over each group's members [images, groups] from `values` [images, members]."""
        highest = np.maximum.reduceat(values, self.offsets, axis=1)
        shifted = np.exp(values - np.repeat(highest, self.sizes, axis=1))
        return np.asarray(highest + np.log(np.add.reduceat(shifted, self.offsets, axis=1)), dtype=np.float32)


@dataclass(frozen=True)
class Thresholds:
    """A model's novelty thresholds and the tables to apply them.

    `minimum` float32 [groups] are the thresholds of `score`, −∞ for a group without one; `group_of` int64 [nodes] is
    that of `NoveltyTable.group_of`.
    """

    table: NoveltyTable
    score: NoveltyScore
    minimum: NDArray[np.float32]
    group_of: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        taxonomy: Taxonomy,
        kind: Kind,
        prototype_child: Sequence[int],
        score: NoveltyScore,
        thresholds: Mapping[str, float],
        common_weight: NDArray[np.float32] | None = None,
    ) -> Thresholds:
        """Make the table from `thresholds`, which map a parent's identity (`""` for the root) to its threshold; see
        `NoveltyTable` for `common_weight`."""
        table = NoveltyTable.of(taxonomy, kind, prototype_child, common_weight)
        minimum = [thresholds.get(parent, -np.inf) for parent in parent_names(table.groups, taxonomy)]
        return cls(table, score, np.array(minimum, dtype=np.float32), table.group_of(kind))

    def known(self, path: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Decide whether each picture is known at each level of its predicted path: bool [images, levels].

        `path` int64 [images, levels] is −1 below the leaf, where nothing is known. A picture that is unknown at a level
        is unknown at all deeper ones. `scores` [images, groups] are those of `score`.
        """
        return known_along(path, self.fits(scores), self.group_of)

    def fits(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Decide whether each picture reaches each group's threshold: bool [images, groups]; `scores` as above."""
        return np.asarray(scores >= self.minimum)

    def of_outputs(
        self,
        path: NDArray[np.int64],
        log_probability: NDArray[np.floating[Any]],
        logit: NDArray[np.floating[Any]],
        similarity: NDArray[np.floating[Any]],
    ) -> NDArray[np.bool_]:
        """Compute `known` from the arrays of `protoserve.inference.engine.Outputs`."""
        return self.known(path, self.table.scores(self.score, log_probability, logit, similarity))


def known_along(path: NDArray[np.int64], fits: NDArray[np.bool_], group_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Decide whether each picture is known at each level of a path: bool [images, levels]; see `Thresholds.known`.

    `fits` bool [images, groups] is that of `Thresholds.fits`, `group_of` int64 [nodes] that of `NoveltyTable.group_of`.
    """
    # The added group is for nodes without a group: an only child is always accepted.
    padded = np.ones((len(fits), fits.shape[1] + 1), dtype=np.bool_)
    padded[:, :-1] = fits
    group = group_of[path]
    at_level = np.take_along_axis(padded, np.where(group < 0, fits.shape[1], group), axis=1) & (path >= 0)
    return np.asarray(np.logical_and.accumulate(at_level, axis=1))


def parent_names(groups: Sequence[Group], taxonomy: Taxonomy) -> list[str]:
    """Return the identity of each group's parent, `""` for the root."""
    return ["" if group.parent == ROOT else taxonomy.names[group.parent] for group in groups]


@dataclass(frozen=True)
class FittedThresholds:
    """Thresholds from pictures of known classes, one per group: `minimum` float64 [groups], −∞ where there is none, the
    number of `images` behind each, int64 [groups], and whether it is `pooled`, bool [groups]."""

    minimum: NDArray[np.float64]
    images: NDArray[np.int64]
    pooled: NDArray[np.bool_]


def fit_thresholds(
    scores: NDArray[np.floating[Any]], below: NDArray[np.bool_], true_positive_rate: float
) -> FittedThresholds:
    """Fit thresholds that the next picture of a known class reaches with probability `true_positive_rate` or more.

    `scores` [images, groups] are those of known pictures, `below` bool [images, groups] says whether the picture's
    class lies below the group's parent. The threshold of a group with n pictures is the k-th smallest of their scores,
    k = ⌊(n + 1)(1 − rate)⌋: of n + 1 pictures drawn alike, the last is one of the k smallest with probability
    k / (n + 1) (split conformal prediction, Vovk et al. 2005). For k = 0 there are too few pictures. These groups pool
    theirs: the threshold of all together, or the group's own smallest score if that is lower. Then the rate holds for
    the pictures below all of these groups together. If even the pool has too few, they get no threshold.
    """
    images = below.sum(axis=0)
    least = math.ceil(round(1.0 / (1.0 - true_positive_rate) - 1.0, 9))
    pooled = images < least
    together = scores[:, pooled][below[:, pooled]]
    shared = -np.inf if len(together) < least else _conformal(together, true_positive_rate)
    minimum = np.full(scores.shape[1], -np.inf)
    for group in np.flatnonzero(images):
        own = scores[below[:, group], group]
        minimum[group] = min(float(own.min()), shared) if pooled[group] else _conformal(own, true_positive_rate)
    return FittedThresholds(minimum, images.astype(np.int64), pooled & (images > 0))


def _conformal(scores: NDArray[np.floating[Any]], true_positive_rate: float) -> float:
    rank = math.floor(round((len(scores) + 1) * (1.0 - true_positive_rate), 9))
    return float(np.sort(scores)[rank - 1])


def threshold(scores: NDArray[np.floating[Any]], true_positive_rate: float) -> float:
    """Return the highest threshold that at least the share `true_positive_rate` of the `scores` [images] of known
    images reaches; needs at least one image.

    >>> threshold(np.array([3.0, 1.0, 2.0, 4.0]), 0.75)
    2.0
    """
    # The product is rounded, because 0.95 × 20 must not exceed 19.
    needed = int(np.ceil(round(true_positive_rate * len(scores), 9)))
    return float(np.sort(scores)[len(scores) - max(1, needed)])


def with_margin(threshold: float) -> float:
    """Return a slightly lower threshold, so that an image at exactly the threshold stays known in other batches and
    runtimes, whose scores differ in the last digits."""
    return threshold - MARGIN * max(1.0, abs(threshold))

"""Is a picture of a class that the taxonomy does not hold, and down to which level is it known?

Every group of competing nodes is asked by itself, so the answer may be: a fruit, an apple, but none of the apples
that I know. A score per group says how well the picture fits it; below the group's threshold it is unknown there and
at all deeper levels. numpy alone: this runs wherever a bundle does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from protoserve.schema import NoveltyScore
from protoserve.taxonomy import ROOT, Group, Kind, Taxonomy, competing_groups

SCORES: tuple[NoveltyScore, ...] = get_args(NoveltyScore)

# Stands for the logarithm of 0, whose differences would be no numbers.
LOWEST_LOG_PROBABILITY = np.float32(-1e30)


@dataclass(frozen=True)
class NoveltyTable:
    """Which nodes and prototypes belong to each group: `groups` as the head has them; `prototype_child` int64
    [prototypes] the node that each belongs to, empty for a plain classifier."""

    groups: tuple[Group, ...]
    nodes: int
    prototype_child: NDArray[np.int64]

    @classmethod
    def of(cls, taxonomy: Taxonomy, kind: Kind, prototype_child: Sequence[int]) -> NoveltyTable:
        """The table of a network of this `kind`; see `competing_groups`."""
        return cls(competing_groups(taxonomy, kind), len(taxonomy.nodes), np.array(prototype_child, dtype=np.int64))

    def group_of(self, kind: Kind) -> NDArray[np.int64]:
        """[nodes] the group that says whether a node is known: the one in which it competes, −1 for an only child.
        Where all leaves compete at once, their one group decides at every level."""
        if kind != "hierarchical":
            return np.zeros(self.nodes, dtype=np.int64)
        found = np.full(self.nodes, -1, dtype=np.int64)
        found[self.members] = np.repeat(np.arange(len(self.groups)), self.sizes)
        return found

    @property
    def available(self) -> tuple[NoveltyScore, ...]:
        """The scores that can be computed: those of similarities need prototypes."""
        return SCORES if len(self.prototype_child) else ("energy", "probability")

    @cached_property
    def members(self) -> NDArray[np.int64]:
        """The groups' members, one group after the other."""
        return np.concatenate([np.array(group.children, dtype=np.int64) for group in self.groups])

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """[groups] how many members each has."""
        return np.array([len(group.children) for group in self.groups], dtype=np.int64)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[groups] the place of each group's first member in `members`."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """[members] how many prototypes each has, 1 for none."""
        return np.maximum(np.bincount(self.prototype_child, minlength=self.nodes)[self.members], 1)

    @cached_property
    def by_child(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The prototypes sorted by child, the children that have some, and where each one's begin."""
        order = np.argsort(self.prototype_child, kind="stable")
        children, starts = np.unique(self.prototype_child[order], return_index=True)
        return order, children, starts

    def scores(
        self,
        score: NoveltyScore,
        log_probability: NDArray[np.floating[Any]],
        logit: NDArray[np.floating[Any]],
        similarity: NDArray[np.floating[Any]],
    ) -> NDArray[np.float32]:
        """[images, groups]: the greater, the better a picture fits one of the group's members.

        `log_probability` and `logit` [images, nodes], `similarity` [images, prototypes] as in
        `protoserve.inference.engine.Outputs`.

        - `energy`: log Σ exp(logit), minus the free energy at temperature 1 (Liu et al. 2020, eq. 4);
        - `similarity`: the greatest similarity to any of the group's prototypes;
        - `own-similarity`: the mean similarity to all prototypes of the member with the greatest logit;
        - `probability`: the greatest conditional probability, as served (Hendrycks & Gimpel 2017);
        - `support`: `own-similarity` × `probability` (or, where the similarity is negative, divided by it): high only
          where the network can tell which member it is *and* finds most of its prototypes.
        """
        if score == "energy":
            return self._log_sum(logit[:, self.members].astype(np.float32))
        if score == "similarity":
            return np.maximum.reduceat(self._by_member(similarity, np.maximum), self.offsets, axis=1)
        if score == "own-similarity":
            return self._own_similarity(logit, similarity)
        # Relative to the sum over the members, which is the parent's own probability, up to rounding.
        relative = np.maximum(log_probability[:, self.members].astype(np.float32), LOWEST_LOG_PROBABILITY)
        probability = np.exp(np.maximum.reduceat(relative, self.offsets, axis=1) - self._log_sum(relative))
        if score == "probability":
            return np.asarray(probability)
        own = self._own_similarity(logit, similarity)
        return np.where(own < 0, own / probability, own * probability)

    def _own_similarity(
        self, logit: NDArray[np.floating[Any]], similarity: NDArray[np.floating[Any]]
    ) -> NDArray[np.float32]:
        """[images, groups] the mean similarity to the prototypes of each group's member with the greatest logit."""
        logits = logit[:, self.members]
        greatest = np.repeat(np.maximum.reduceat(logits, self.offsets, axis=1), self.sizes, axis=1)
        means = self._by_member(similarity, np.add) / self.counts.astype(np.float32)
        return np.maximum.reduceat(np.where(logits == greatest, means, -np.inf), self.offsets, axis=1)

    def _by_member(self, similarity: NDArray[np.floating[Any]], join: np.ufunc) -> NDArray[np.float32]:
        """[images, members] the similarities to each member's prototypes, joined; −∞ where it has none."""
        order, children, starts = self.by_child
        joined = np.full((len(similarity), self.nodes), -np.inf, dtype=np.float32)
        joined[:, children] = join.reduceat(similarity[:, order], starts, axis=1)
        return joined[:, self.members]

    def _log_sum(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[images, groups] log Σ exp over each group's members, from `values` [images, members]."""
        greatest = np.maximum.reduceat(values, self.offsets, axis=1)
        shifted = np.exp(values - np.repeat(greatest, self.sizes, axis=1))
        return np.asarray(greatest + np.log(np.add.reduceat(shifted, self.offsets, axis=1)), dtype=np.float32)


@dataclass(frozen=True)
class Thresholds:
    """What deciding on novelty needs of a model: its `table`, the `score`, `least` float32 [groups] the thresholds, −∞
    where there is none, and `group_of` int64 [nodes] (see `NoveltyTable.group_of`)."""

    table: NoveltyTable
    score: NoveltyScore
    least: NDArray[np.float32]
    group_of: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        taxonomy: Taxonomy,
        kind: Kind,
        prototype_child: Sequence[int],
        score: NoveltyScore,
        thresholds: Mapping[str, float],
    ) -> Thresholds:
        """From thresholds by the parent's identity, `""` for the root."""
        table = NoveltyTable.of(taxonomy, kind, prototype_child)
        least = [thresholds.get(parent, -np.inf) for parent in parent_names(table.groups, taxonomy)]
        return cls(table, score, np.array(least, dtype=np.float32), table.group_of(kind))

    def known(self, path: NDArray[np.int64], scores: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """[images, levels] whether the picture is known at each level of its predicted `path` int64 [images, levels],
        whose places below the leaf are −1 and not known; what is unknown at a level stays so below it. `scores`
        [images, groups] are those of `score`."""
        # One group more, past the last, for nodes that stand in none: nothing speaks against an only child.
        least = np.append(self.least, np.float32(-np.inf))
        fits = np.pad(scores, ((0, 0), (0, 1))) >= least
        group = self.group_of[path]
        at_level = np.take_along_axis(fits, np.where(group < 0, len(self.least), group), axis=1) & (path >= 0)
        return np.asarray(np.logical_and.accumulate(at_level, axis=1))

    def of_outputs(
        self,
        path: NDArray[np.int64],
        log_probability: NDArray[np.floating[Any]],
        logit: NDArray[np.floating[Any]],
        similarity: NDArray[np.floating[Any]],
    ) -> NDArray[np.bool_]:
        """`known` from the arrays of `protoserve.inference.engine.Outputs`."""
        return self.known(path, self.table.scores(self.score, log_probability, logit, similarity))


def parent_names(groups: Sequence[Group], taxonomy: Taxonomy) -> list[str]:
    """Each group's parent by its identity, `""` for the root."""
    return ["" if group.parent == ROOT else taxonomy.names[group.parent] for group in groups]


def threshold(scores: NDArray[np.floating[Any]], true_positive_rate: float) -> float:
    """The greatest threshold that at least `true_positive_rate` of the `scores` [images ≥ 1] of known images reach.

    >>> threshold(np.array([3.0, 1.0, 2.0, 4.0]), 0.75)
    2.0
    """
    # Rounded, for 0.95 × 20 must not come to more than 19.
    needed = int(np.ceil(round(true_positive_rate * len(scores), 9)))
    return float(np.sort(scores)[len(scores) - max(1, needed)])

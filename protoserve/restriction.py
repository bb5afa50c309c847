"""Restrictions: what can be in a picture, as stated by its sender: a shop's assortment, a region, a season.

A restriction gives every leaf a weight, 0 for what can't be there, and ends some paths early. With the network's
probability P(leaf) of a picture, the restricted one is the probability given that the restriction is true:

    P'(leaf) = P(leaf) · weight(leaf) / Σ P(leaf) · weight(leaf)

A node's probability is the sum over its leaves, and its conditional probability is renormalised over what is left of
its parent. Logits and evidence stay as they are: the picture shows what it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError, nearest
from protoserve.taxonomy import Taxonomy

# Replaces −∞, so that no difference of logarithms is NaN.
_LEAST = -1e30


@dataclass(frozen=True)
class Restriction:
    """A restriction on the leaves of `taxonomy`; made by `restriction_of`.

    `log_weight` float64 [leaves] is −∞ for an excluded leaf; `end` int64 [leaves] is the node at which the leaf's path
    ends: the leaf itself, or its ancestor at the level that the restriction allows.
    """

    taxonomy: Taxonomy
    log_weight: NDArray[np.float64]
    end: NDArray[np.int64]

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """Whether each node is on the path of an allowed leaf, down to the path's end: bool [nodes]."""
        paths = self.taxonomy.path_at_level[self.end[self.log_weight > -np.inf]]
        found = np.zeros(len(self.taxonomy.nodes), dtype=np.bool_)
        found[paths[paths >= 0]] = True
        return found

    @cached_property
    def certain_levels(self) -> int:
        """The number of levels at which all allowed paths agree: the restriction alone decides them."""
        paths = self.taxonomy.path_at_level[self.end[self.log_weight > -np.inf]]
        agree = (paths == paths[0]).all(axis=0) & (paths[0] >= 0)
        return int(np.logical_and.accumulate(agree).sum())

    @cached_property
    def only_child(self) -> NDArray[np.bool_]:
        """Whether each node is its parent's only allowed child, although the taxonomy has others: bool [nodes]."""
        parent = self.taxonomy.parent + 1
        own = np.bincount(parent[self.allowed], minlength=len(parent) + 1)[parent]
        return np.asarray(self.allowed & (own == 1) & (np.bincount(parent)[parent] > 1))

    @cached_property
    def cut(self) -> NDArray[np.bool_]:
        """Whether paths end at the node although it is not a leaf: bool [nodes]."""
        found = np.zeros(len(self.taxonomy.nodes), dtype=np.bool_)
        found[self.end[self.end != self.taxonomy.leaf_nodes]] = True
        return found

    def log_probability(self, leaf_log_probability: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Compute the restricted log-probabilities of all nodes, float64 [images, nodes], −∞ for those that are not
        allowed, from the network's log-probabilities of the leaves [images, leaves]."""
        weighted = np.maximum(leaf_log_probability.astype(np.float64), _LEAST) + self.log_weight
        weighted -= weighted.max(axis=1, keepdims=True)
        order, bounds = self._ranges
        # The added column is the bound after the last leaf.
        mass = np.zeros((len(weighted), len(order) + 1))
        np.exp(weighted[:, order], out=mass[:, :-1])
        nodes = np.add.reduceat(mass, bounds, axis=1)[:, ::2]
        with np.errstate(divide="ignore"):
            found = np.log(nodes) - np.log(mass.sum(axis=1, keepdims=True))
        return np.where(self.allowed, np.minimum(found, 0.0), -np.inf)

    def path(self, log_probability: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the path to the most probable end, int64 [images, levels], −1 below it; the first of equals wins."""
        ends = self._ends
        return np.asarray(self.taxonomy.path_at_level[ends[log_probability[:, ends].argmax(axis=1)]])

    def excluded(self, leaf_log_probability: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return the probability that the network gives to the excluded leaves, float64 [images] in [0, 1]."""
        probability = np.exp(leaf_log_probability.astype(np.float64))
        return np.asarray(np.minimum(probability[:, self.log_weight == -np.inf].sum(axis=1), 1.0))

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """The nodes at which allowed paths end, in order: int64 [ends]."""
        return np.unique(self.end[self.log_weight > -np.inf])

    @cached_property
    def _ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The leaves in depth-first order, and the bounds of every node's leaves in it: first and last + 1 in turn."""
        paths = self.taxonomy.path_at_level[self.taxonomy.leaf_nodes]
        order = np.lexsort(paths.T[::-1])
        first = np.empty(len(self.taxonomy.nodes), dtype=np.int64)
        for column in paths[order].T:
            nodes, index = np.unique(column, return_index=True)
            first[nodes[nodes >= 0]] = index[nodes >= 0]
        return order, np.stack([first, first + self.taxonomy.leaf_counts], axis=1).ravel()


def combined(first: Restriction, second: Restriction) -> Restriction:
    """Return the restriction that both hold: leaves that both allow, with both weights, and the earlier end.

    Raises InputError if they allow no leaf in common.
    """
    log_weight = first.log_weight + second.log_weight
    if not (log_weight > -np.inf).any():
        raise InputError("the named list and the request's own allow and deny have no class in common; change one")
    level = np.array([len(node) for node in first.taxonomy.nodes])
    end = np.where(level[first.end] <= level[second.end], first.end, second.end)
    return Restriction(first.taxonomy, log_weight, end)


def unrestricted(taxonomy: Taxonomy) -> Restriction:
    """Return the restriction that allows everything."""
    return Restriction(taxonomy, np.zeros(len(taxonomy.leaves)), taxonomy.leaf_nodes)


def restriction_of(
    taxonomy: Taxonomy,
    *,
    allow: Iterable[str] = (),
    deny: Iterable[str] = (),
    depth: Mapping[str, int] | None = None,
    prior: Mapping[str, float] | None = None,
) -> Restriction:
    """Make a restriction from nodes, each of which stands for its whole branch.

    - `allow`: only leaves in these branches can be there; none means all;
    - `deny`: leaves in these branches can't;
    - `depth` maps a node to a level: paths through the node end at that level at the latest. `""` is the root;
    - `prior` maps a node to how much more frequent its leaves are than in training, relative to other leaves; of
      several nodes above a leaf, the deepest counts.

    Raises InputError for a node that the taxonomy does not have, for a node that is both allowed and denied, if no leaf
    remains, for a depth above its node or below the taxonomy's, and for a prior that is not above 0.

    >>> tree = Taxonomy.from_paths(["Fruit/Apple", "Fruit/Lemon", "Garlic"])
    >>> restriction_of(tree, deny=["Fruit/Lemon"]).allowed
    array([ True,  True,  True, False])
    """
    allow, deny = list(allow), list(deny)
    if both := sorted(set(allow) & set(deny)):
        raise InputError(f"{both[0]!r} is both allowed and denied; name it once")
    below = {node: _leaves_below(taxonomy, node, "allow") for node in allow}
    kept = np.any(list(below.values()), axis=0) if allow else np.ones(len(taxonomy.leaves), dtype=np.bool_)
    for node in deny:
        kept = kept & ~_leaves_below(taxonomy, node, "deny")
    if not kept.any():
        allowed = f"allow={','.join(allow)} and " if allow else ""
        raise InputError(f"{allowed}deny={','.join(deny)} leave no class; deny fewer, or allow more")
    log_weight = np.where(kept, 0.0, -np.inf)
    weights = prior or {}
    for node in sorted(weights, key=lambda node: node.count("/")):
        inside = _leaves_below(taxonomy, node, "prior")
        if not 0 < weights[node] < np.inf:
            raise InputError(f"prior={node}:{weights[node]:g}: give a number above 0, or deny the node")
        log_weight[inside & kept] = np.log(weights[node])
    end = taxonomy.leaf_nodes
    for node, level in (depth or {}).items():
        lowest = node.count("/") + 1 if node else 1
        inside = np.ones_like(kept) if not node else _leaves_below(taxonomy, node, "depth")
        if not lowest <= level <= taxonomy.depth:
            raise InputError(
                f"depth={node}:{level}: give a level from {lowest}, that of the node itself, to {taxonomy.depth}"
            )
        at_level = taxonomy.path_at_level[end, level - 1]
        end = np.where(inside & (at_level >= 0), at_level, end)
    return Restriction(taxonomy, log_weight, end)


def _leaves_below(taxonomy: Taxonomy, node: str, option: str) -> NDArray[np.bool_]:
    if node not in taxonomy.index:
        raise InputError(f"{option}: the taxonomy has no node {node[:80]!r}{nearest(node[:80], taxonomy.names)}")
    level = node.count("/")
    return np.asarray(taxonomy.path_at_level[taxonomy.leaf_nodes, level] == taxonomy.index[node])

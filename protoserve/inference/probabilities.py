"""Probabilities from logits on the host, where they are not the graph's own: ensembles, and prototypes switched off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protoserve.novelty import NoveltyTable
from protoserve.taxonomy import Kind, Taxonomy

# Smaller probabilities are raised to this before the logarithm, as in the graphs.
MIN_PROBABILITY = 1e-37


def node_log_probability(
    logit: NDArray[np.float64], taxonomy: Taxonomy, kind: Kind, table: NoveltyTable
) -> NDArray[np.float64]:
    """Compute the log-probabilities [N, V] of all nodes from their logits [N, V], each divided by its group's
    temperature."""
    members, offsets, sizes = table.members, table.offsets, table.sizes
    competing = logit[:, members]
    competing = competing - np.repeat(np.maximum.reduceat(competing, offsets, axis=1), sizes, axis=1)
    total = np.add.reduceat(np.exp(competing), offsets, axis=1)
    # The added column of zeros is read for levels below a leaf. An only child's conditional is 0, too.
    conditional = np.zeros((len(logit), logit.shape[1] + 1))
    conditional[:, members] = competing - np.repeat(np.log(total), sizes, axis=1)
    if kind == "hierarchical":
        return np.asarray(conditional[:, taxonomy.path_at_level].sum(axis=2))
    probability = np.zeros_like(logit)
    probability[:, members] = np.exp(conditional[:, members])
    depths = np.array([len(node) for node in taxonomy.nodes])
    for depth in range(taxonomy.depth, 1, -1):
        below = np.flatnonzero(depths == depth)
        np.add.at(probability.T, taxonomy.parent[below], probability.T[below])
    log_probability = np.log(np.maximum(probability, MIN_PROBABILITY))
    log_probability[:, members] = conditional[:, members]
    return log_probability


def most_probable_path(log_probability: NDArray[np.float64], taxonomy: Taxonomy) -> NDArray[np.int64]:
    """Return the path to the most probable leaf, int64 [N, levels], −1 below it."""
    leaves = taxonomy.leaf_nodes
    return np.asarray(taxonomy.path_at_level[leaves[log_probability[:, leaves].argmax(axis=1)]])

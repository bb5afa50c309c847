"""Probabilities from logits on the host, against loops over the tree."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.inference.probabilities import most_probable_path, node_log_probability
from protoserve.novelty import NoveltyTable
from protoserve.taxonomy import Kind, Taxonomy
from tests.protoserve.networks.heads import UNEVEN


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_probabilities_are_those_of_loops_over_the_tree(kind: Kind) -> None:
    tree = Taxonomy.from_paths(UNEVEN)
    logit = np.random.default_rng(0).normal(size=(5, len(tree.nodes)))
    found = np.exp(node_log_probability(logit, tree, kind, NoveltyTable.of(tree, kind, [])))
    for image, row in enumerate(logit):
        for node, path in enumerate(tree.nodes):
            if kind == "flat":
                leaves = np.exp(row[list(tree.leaves)])
                below = [tree.nodes[leaf][: len(path)] == path for leaf in tree.leaves]
                expected = leaves[below].sum() / leaves.sum()
            else:
                expected = 1.0
                for depth in range(1, len(path) + 1):
                    ancestor = tree.index["/".join(path[:depth])]
                    siblings = list(tree.children_of(int(tree.parent[ancestor])))
                    expected *= np.exp(row[ancestor]) / np.exp(row[siblings]).sum()
            assert found[image, node] == pytest.approx(expected, rel=1e-9)


def test_the_path_leads_to_the_most_probable_leaf() -> None:
    tree = Taxonomy.from_paths(["a/x", "a/y", "b"])
    probability = {"a": 0.6, "b": 0.4, "a/x": 0.35, "a/y": 0.25}
    log_probability = np.log([[probability[name] for name in tree.names]])
    [path] = most_probable_path(log_probability, tree)
    assert [tree.names[node] for node in path if node >= 0] == ["b"]

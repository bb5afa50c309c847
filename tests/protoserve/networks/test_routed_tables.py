"""The tables of a routed head: a small tree worked by hand, and random trees read node by node."""

from __future__ import annotations

import pytest
import torch

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.routed_tables import LastLayerRows, NodeTables, RoutedLevel, node_tables
from protoserve.taxonomy import ROOT, Taxonomy
from tests.protoserve.networks.heads import head_over_random_tree

SEEDS = range(12)


def small_head() -> PrototypeHead:
    """Q(0) A(1) | A/w(2) A/B(3) | A/B/C(4) | A/B/C/x(5) A/B/C/y(6); the root is 7, and every child has 2 prototypes."""
    tree = Taxonomy.from_paths(["Q", "A/w", "A/B/C/x", "A/B/C/y"])
    return PrototypeHead(tree, prototype_children(tree, "hierarchical", 2), 3).eval()


def owned(head: PrototypeHead, parent: int) -> list[int]:
    """The prototypes of the children of a node, or of the root's for V."""
    tree = head.taxonomy
    children = tree.children_of(ROOT if parent == len(tree.nodes) else parent)
    return [number for number, child in enumerate(head.grouping.prototype_child.tolist()) if child in children]


def last_layer(head: PrototypeHead, node: int) -> list[float]:
    """A node's centred weights for the prototypes of its group, in their order; none for an only child."""
    weight, tree = head.effective_weight().detach(), head.taxonomy
    for number, group in enumerate(tree.groups):
        if node in group.children:
            parent = len(tree.nodes) if group.parent == ROOT else group.parent
            table = weight[number, : len(group.children), : len(owned(head, parent))].double()
            row: list[float] = (table[group.children.index(node)] - table.mean(0)).float().tolist()
            return row
    return []


# ---- the taxonomy ----------------------------------------------------------------------------------------------


def test_a_small_tree_worked_by_hand() -> None:
    tables = node_tables(small_head())
    assert tables.depth.tolist() == [1, 1, 2, 2, 3, 4, 4, 0]
    assert tables.children.tolist() == [0, 2, 0, 1, 2, 0, 0, 2]
    assert [int(tables.first_child[parent]) for parent in (7, 1, 3, 4)] == [0, 2, 4, 5]
    # A/B has one child, so nothing competes there.
    assert tables.group.tolist() == [-1, 1, -1, -1, 2, -1, -1, 0]
    assert tables.prototypes.tolist() == [0, 4, 0, 0, 4, 0, 0, 4]
    assert [int(tables.first_prototype[parent]) for parent in (7, 1, 4)] == [0, 4, 8]
    assert [tables.parents_at(depth).tolist() for depth in range(5)] == [[7], [1], [3], [4], []]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_node_has_its_children_and_its_groups_prototypes(seed: int) -> None:
    head = head_over_random_tree(seed)
    tree, tables = head.taxonomy, node_tables(head)
    root = len(tree.nodes)
    for node in range(root + 1):
        children = list(tree.children_of(ROOT if node == root else node))
        first = int(tables.first_child[node])
        assert list(range(first, first + int(tables.children[node]))) == children or not children
        assert int(tables.children[node]) == len(children)
        prototypes = owned(head, node)
        assert int(tables.prototypes[node]) == len(prototypes)
        if prototypes:
            start = int(tables.first_prototype[node])
            assert list(range(start, start + len(prototypes))) == prototypes
            assert tree.groups[int(tables.group[node])].children == tuple(children)
        else:
            assert int(tables.group[node]) == -1
        assert int(tables.depth[node]) == (0 if node == root else len(tree.nodes[node]))
    every = [parent for depth in range(tree.depth) for parent in tables.parents_at(depth).tolist()]
    assert sorted(every) == [node for node in range(root + 1) if tables.children[node]]


# ---- the last layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_node_has_its_row_of_the_last_layer(seed: int, dense: bool) -> None:
    # The table of all rows pays off beside prototypes of many dimensions.
    head = head_over_random_tree(seed, dimensions=4_096 if dense else 2)
    rows, nodes, slots = LastLayerRows(head), len(head.taxonomy.nodes), head.top_k_limit
    assert rows.dense == dense
    wanted = torch.zeros(nodes + 1, slots)
    for node in range(nodes):
        row = last_layer(head, node)
        wanted[node, : len(row)] = torch.tensor(row)
    every = torch.arange(nodes + 1)
    assert torch.equal(rows(every, slots), wanted)
    # Any shape of nodes, in any order; row V, of no node, is 0.
    chosen = torch.tensor([[nodes, 0, 1], [1, nodes - 1, nodes]])
    assert torch.equal(rows(chosen, slots), wanted[chosen])
    if dense:
        temperature = torch.ones(nodes + 1)
        for number, group in enumerate(head.taxonomy.groups):
            temperature[list(group.children)] = head.temperature[number]
        torch.testing.assert_close(rows.scaled, wanted / temperature[:, None])


def test_fewer_slots_than_the_largest_groups_are_the_first_ones() -> None:
    head = head_over_random_tree(0, dimensions=2)
    rows, slots = LastLayerRows(head), head.top_k_limit
    every = torch.arange(len(head.taxonomy.nodes) + 1)
    assert torch.equal(rows(every, slots - 1), rows(every, slots)[:, : slots - 1])


# ---- a level ---------------------------------------------------------------------------------------------------


def check_level(head: PrototypeHead, tables: NodeTables, depth: int, slots: int | None) -> None:
    """Read a level's tables parent by parent."""
    tree = head.taxonomy
    nodes, count, leaves = len(tree.nodes), len(head.prototypes), list(tree.leaves)
    parents = [node for node in range(nodes) if len(tree.nodes[node]) == depth and tree.children_of(node)]
    next_parents = [node for node in range(nodes) if len(tree.nodes[node]) == depth + 1 and tree.children_of(node)]
    level = RoutedLevel(head, tables, depth, 2, slots)
    assert level.parents == len(parents) and level.members == max(len(tree.children_of(node)) for node in parents)
    prototypes, child, number = level.below.split([level.slots, level.members, level.members], dim=1)
    assert len(level.below) == len(parents) + 1
    # The last row is that of no parent.
    assert (prototypes[-1] == count).all() and (child[-1] == nodes).all()
    any_leaf, all_leaves = False, True
    for row, parent in enumerate(parents):
        own, children = owned(head, parent), list(tree.children_of(parent))
        assert prototypes[row].tolist() == own + [count] * (level.slots - len(own))
        padding = level.members - len(children)
        assert child[row].tolist() == children + [nodes] * padding
        assert [int(number[row, at]) for at, node in enumerate(children) if node in leaves] == [
            leaves.index(node) for node in children if node in leaves
        ]
        absent = [0.0] * len(children) + [-1e30] * padding
        assert level.absent[row].tolist() == pytest.approx(absent)
        is_leaf = [node in leaves for node in children] + [False] * padding
        any_leaf, all_leaves = any_leaf or any(is_leaf), all_leaves and all(is_leaf[: len(children)])
        if level.not_leaf is not None:
            assert (level.not_leaf[row] == 0).tolist() == is_leaf
        if level.inner is not None and level.not_inner is not None:
            inner = [next_parents.index(node) if node in next_parents else len(next_parents) for node in children]
            assert level.inner[row, : len(children)].tolist() == inner
            assert (level.not_inner[row] == 0).tolist()[: len(children)] == [node in next_parents for node in children]
            assert (level.not_inner[row, len(children) :] < -1e29).all()
        if level.temperature is not None:
            groups = [at for at, group in enumerate(tree.groups) if group.parent == parent]
            wanted = float(head.temperature[groups[0]]) if groups else 1.0
            assert float(level.temperature[row]) == pytest.approx(wanted)
    assert level.has_leaves == any_leaf and (level.not_leaf is None) == all_leaves
    assert (level.inner is None) == (level.not_inner is None) == (not next_parents)
    assert (level.temperature is None) == (slots is not None)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_level_lists_prototypes_and_children_by_parent(seed: int, padded: bool) -> None:
    head = head_over_random_tree(seed)
    tables = node_tables(head)
    for depth in range(1, head.taxonomy.depth):
        check_level(head, tables, depth, head.top_k_limit if padded else None)

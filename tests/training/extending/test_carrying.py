"""A carried head says what the old one said: bit for bit under new names, exactly renormalised without a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.taxonomy import Kind, Taxonomy
from training.extending.carrying import carried_head, new_prototypes
from training.extending.changes import ChangedTree, changed_tree, read_changes

TREE = Taxonomy.from_paths(["A/x", "A/y", "A/z", "B/p", "B/q", "C"])


def random_head(kind: Kind = "hierarchical") -> PrototypeHead:
    torch.manual_seed(0)
    head = PrototypeHead(TREE, prototype_children(TREE, kind, 3), 4, kind=kind)
    with torch.no_grad():
        head.weight.add_(0.3 * torch.randn_like(head.weight))
        head.temperature.copy_(torch.rand_like(head.temperature) + 0.5)
        head.usual.copy_(torch.rand_like(head.usual))
    return head.eval()


def latent() -> Tensor:
    return torch.rand(7, 4, 2, 3, generator=torch.Generator().manual_seed(1))


def tree_after(added: list[str], removed: list[str], renamed: list[str], merged: list[str]) -> ChangedTree:
    return changed_tree(TREE, read_changes(added, removed, renamed, merged))


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_new_names_change_no_bit(kind: Kind) -> None:
    head, tree = random_head(kind), tree_after([], [], ["A=Alpha", "B/p=P"], [])
    carried = carried_head(head, tree, new_prototypes(head, tree, 3))
    assert carried.origin.tolist() == list(range(len(head.prototypes)))
    assert carried.changed == ()
    for before, after in zip(head(latent()), carried.head(latent()), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(carried.head.usual, head.usual)


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_without_a_class_the_rest_is_the_softmax_of_what_remains(kind: Kind) -> None:
    head, tree = random_head(kind), tree_after([], ["A/y"], [], [])
    carried = carried_head(head, tree, new_prototypes(head, tree, 3))
    assert not (head.grouping.prototype_child[torch.from_numpy(carried.origin)] == TREE.index["A/y"]).any()
    output, old = carried.head(latent()), head(latent())
    group = int(head.grouping.node_group[TREE.index["A/x"]])
    # By hand: the rows of the members that stay, over the prototypes that stay.
    stay = [node for node in head.grouping.member_node[group].tolist() if node < len(TREE.nodes)]
    stay = [node for node in stay if node != TREE.index["A/y"]]
    logits = torch.zeros(7, len(stay), dtype=torch.float64)
    for place, node in enumerate(stay):
        for prototype, child in enumerate(head.grouping.prototype_child.tolist()):
            if head.grouping.prototype_group[prototype] == group and child != TREE.index["A/y"]:
                slot = head.grouping.prototype_slot[prototype]
                weight = head.weight[group, head.grouping.node_member[node], slot]
                logits[:, place] += (weight * old.similarity[:, prototype]).double().detach()
    expected = (logits / float(head.temperature[group])).log_softmax(1)
    columns = [tree.taxonomy.index[TREE.names[node]] for node in stay]
    assert output.conditional[:, columns].detach().double().numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    if kind == "hierarchical":
        others = [name for name in tree.taxonomy.names if not name.startswith("A/")]
        mine, theirs = ([t.index[name] for name in others] for t in (tree.taxonomy, TREE))
        assert torch.equal(output.conditional[:, mine], old.conditional[:, theirs])


def test_a_new_class_enters_like_its_siblings() -> None:
    head, tree = random_head(), tree_after(["A/new=a"], [], [], [])
    needed = new_prototypes(head, tree, 9, above=0)
    assert needed == {tree.taxonomy.index["A/new"]: 3}
    carried = carried_head(head, tree, needed)
    assert len(carried.new) == 3
    group = int(carried.head.grouping.node_group[tree.taxonomy.index["A/new"]])
    assert carried.changed == (group,)
    old = int(head.grouping.node_group[TREE.index["A/x"]])
    own = head.effective_weight().detach()[old][head.own_mask[old]].mean()
    slot = carried.head.grouping.prototype_slot[carried.new[0]]
    assert float(carried.head.weight[group, 3, slot].detach()) == pytest.approx(float(own), abs=1e-6)
    # The old members see the old prototypes with the old weights.
    assert torch.equal(carried.head.effective_weight()[group, :3, :9], head.effective_weight()[old, :3, :9])


def test_nodes_above_a_new_class_get_some_prototypes_too() -> None:
    head, tree = random_head(), tree_after(["A/new=a", "A/newer=b", "D/one=c", "D/two=d"], [], [], [])
    index = tree.taxonomy.index
    # Siblings have 3; A gets ⌈3 / 3⌉ for each new leaf below it. D is new itself, and has only the root above it.
    expected = {index[name]: 3 for name in ("A/new", "A/newer", "D")} | {index["A"]: 2}
    assert new_prototypes(head, tree, 9) == expected | {index["D/one"]: 9, index["D/two"]: 9}
    carried = carried_head(head, tree, new_prototypes(head, tree, 9))
    child = carried.head.grouping.prototype_child.numpy()[carried.new]
    assert (child == index["A"]).sum() == 2 and (child == index["A/new"]).sum() == 3


def test_a_flat_head_gets_nothing_above() -> None:
    head, tree = random_head("flat"), tree_after(["A/new=a"], [], [], [])
    assert new_prototypes(head, tree, 9) == {tree.taxonomy.index["A/new"]: 3}


def test_an_only_child_that_gets_a_sibling_gets_prototypes_too() -> None:
    only = Taxonomy.from_paths(["A/x", "B", "C"])
    head = PrototypeHead(only, prototype_children(only, "hierarchical", 2), 4)
    tree = changed_tree(only, read_changes(["A/y=a"], [], [], []))
    index = tree.taxonomy.index
    assert new_prototypes(head, tree, 5) == {index["A/x"]: 5, index["A/y"]: 5, index["A"]: 2}


def test_merged_classes_keep_the_prototypes_of_both() -> None:
    head, tree = random_head(), tree_after([], [], [], ["A/xy=x,y"])
    carried = carried_head(head, tree, {})
    child = carried.head.grouping.prototype_child.numpy()
    assert (child == tree.taxonomy.index["A/xy"]).sum() == 6
    group = int(carried.head.grouping.node_group[tree.taxonomy.index["A/xy"]])
    assert carried.changed == (group,)


def test_a_group_that_loses_a_prototype_has_changed() -> None:
    head, tree = random_head(), tree_after([], [], ["C=D"], [])
    carried = carried_head(head, tree, {}, dropped=[0])
    assert carried.changed == (0,)
    assert 0 not in carried.origin
    assert np.all(np.diff(carried.origin) > 0)

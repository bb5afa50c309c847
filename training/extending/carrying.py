"""Carry a head over to a changed tree: its prototypes, last layers, temperatures and usual similarities."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead
from protoserve.taxonomy import Group, competing_groups
from training.extending.changes import ChangedTree

# Each node above a new class gets some prototypes from its pictures, because the pictures below it now look different:
# this many, relative to what siblings of the class have. Chosen on val of Grocery Store
# (`python -m benchmarks.accuracy.extending --choose`).
ABOVE: Final = 1 / 3


@dataclass(frozen=True)
class CarriedHead:
    """A head over the changed tree. `origin` int64 [P] is the old number of each prototype, −1 for a new one, whose
    vector is not set yet. `changed` are the groups whose members or prototypes are not those of one old group."""

    head: PrototypeHead
    origin: NDArray[np.int64]
    changed: tuple[int, ...]

    @property
    def new(self) -> NDArray[np.int64]:
        """The numbers of the new prototypes, int64, ascending."""
        return np.flatnonzero(self.origin < 0)


def new_prototypes(
    head: PrototypeHead, tree: ChangedTree, fallback: int, dropped: Collection[int] = (), *, above: float = ABOVE
) -> dict[int, int]:
    """Return how many prototypes each competing node needs that it does not have yet.

    A node that has none gets as many as its siblings have in the median, or `fallback` if they have none. For each new
    leaf, nodes above it that have prototypes get `above` times as many more. `dropped` are old prototypes that do not
    stay.
    """
    kept, taxonomy, learned = _kept(head, tree, dropped), tree.taxonomy, set(tree.node_of.values())
    counts = np.bincount(list(kept.values()), minlength=len(taxonomy.nodes))
    needed: dict[int, int] = {}
    for group in competing_groups(taxonomy, head.kind):
        own = counts[list(group.children)]
        usual = int(np.median(own[own > 0])) if own.any() else fallback
        needed |= {child: usual for child, count in zip(group.children, own.tolist(), strict=True) if not count}
    fresh = {node: number for node, number in needed.items() if node not in learned}
    for leaf in (leaf for leaf in taxonomy.leaves if leaf not in learned):
        path = [node for node in taxonomy.path_at_level[leaf].tolist() if node >= 0]
        own_numbers = [fresh[node] for node in path if node in fresh]
        for node in (node for node in path if own_numbers and above and counts[node]):
            needed[node] = needed.get(node, 0) + math.ceil(above * own_numbers[-1])
    return needed


@torch.no_grad()
def carried_head(
    head: PrototypeHead, tree: ChangedTree, needed: Mapping[int, int], dropped: Collection[int] = ()
) -> CarriedHead:
    """Make the head over the changed tree, with `needed` new prototypes for nodes that have none, and without the old
    prototypes `dropped`.

    What is removed leaves its row and its prototypes; all other weights stay. So the conditionals of the rest are the
    softmax of what remains of their logits. Where a weight is not given by the old head, it takes the place of one that
    is: a new member's weight for an old prototype is the mean over the members that the prototype does not belong to,
    and a new prototype has the mean weights of its siblings' prototypes, or +1 and −0.5 (Chen et al. 2019) without any.
    """
    kept, taxonomy = _kept(head, tree, dropped), tree.taxonomy
    groups = competing_groups(taxonomy, head.kind)
    by_node: dict[int, list[int]] = {}
    for prototype, node in kept.items():
        by_node.setdefault(node, []).append(prototype)
    children, origin = [], []
    for group in groups:
        for child in group.children:
            stay, fresh = by_node.get(child, []), needed.get(child, 0)
            children += [child] * (len(stay) + fresh)
            origin += [*stay, *[-1] * fresh]
    result = PrototypeHead(
        taxonomy,
        children,
        head.prototypes.shape[1],
        kind=head.kind,
        similarity=head.similarity,
        unit_length=head.unit_length,
    )
    from_old, numbers = np.array(origin, dtype=np.int64), np.flatnonzero(np.array(origin) >= 0)
    old = torch.from_numpy(from_old[numbers])
    result.prototypes[numbers] = head.prototypes[old].cpu()
    result.usual[numbers] = head.usual[old].cpu()
    if head.reference is not None and result.reference is not None:
        result.reference[numbers] = head.reference[old].cpu()
    result.centre.copy_(head.centre)
    result.temperature.copy_(_temperatures(head, tree, groups))
    changed = _set_weights(result, head, tree, from_old)
    return CarriedHead(result.eval(), from_old, changed)


def _kept(head: PrototypeHead, tree: ChangedTree, dropped: Collection[int]) -> dict[int, int]:
    """The old prototypes that stay, each with its new node; one of a node that no longer competes goes."""
    competing = {child for group in competing_groups(tree.taxonomy, head.kind) for child in group.children}
    children = enumerate(head.grouping.prototype_child.tolist())
    moved = {prototype: tree.node_of.get(node) for prototype, node in children if prototype not in dropped}
    return {prototype: node for prototype, node in moved.items() if node is not None and node in competing}


def _temperatures(head: PrototypeHead, tree: ChangedTree, groups: tuple[Group, ...]) -> Tensor:
    """[G]: each group's temperature: that of the old group of its parent, the first if several were merged, else 1."""
    of_parent: dict[int, float] = {}
    for group, value in zip(competing_groups(head.taxonomy, head.kind), head.temperature.tolist(), strict=True):
        parent = tree.node_of.get(group.parent) if group.parent >= 0 else group.parent
        if parent is not None:
            of_parent.setdefault(parent, value)
    return torch.tensor([of_parent.get(group.parent, 1.0) for group in groups])


def _set_weights(
    result: PrototypeHead, head: PrototypeHead, tree: ChangedTree, origin: NDArray[np.int64]
) -> tuple[int, ...]:
    """Fill the last layers, and return the groups that are not as they were."""
    old_groups = competing_groups(head.taxonomy, head.kind)
    trained = head.effective_weight().double().cpu()
    old_child = head.grouping.prototype_child.tolist()
    old_group, old_slot = head.grouping.prototype_group.tolist(), head.grouping.prototype_slot.tolist()
    weight = torch.zeros(result.weight.shape, dtype=torch.float64)
    changed = []
    for number, group in enumerate(competing_groups(result.taxonomy, head.kind)):
        prototypes = np.flatnonzero(result.grouping.prototype_group.numpy() == number)
        member_of = {node: member for member, node in enumerate(group.children)}
        own_weights, other_weights, sources = [], [], set()
        for slot, prototype in enumerate(prototypes.tolist()):
            old = int(origin[prototype])
            if old < 0:
                continue
            old_members, column = old_groups[old_group[old]].children, trained[old_group[old], :, old_slot[old]]
            own = old_members.index(old_child[old])
            rest = [column[place] for place in range(len(old_members)) if place != own]
            other = float(torch.stack(rest).mean())
            parts: dict[int, list[float]] = {}
            for place, node in enumerate(old_members):
                if (member := member_of.get(tree.node_of.get(node, -1))) is not None:
                    parts.setdefault(member, []).append(float(column[place]))
            values = [float(np.mean(parts[member])) if member in parts else other for member in range(len(member_of))]
            values[member_of[tree.node_of[old_child[old]]]] = float(column[own])
            weight[number, : len(values), slot] = torch.tensor(values, dtype=torch.float64)
            own_weights.append(float(column[own]))
            other_weights.append(other)
            sources.add(old_group[old])
        own_mean, other_mean = (
            (float(np.mean(own_weights)), float(np.mean(other_weights))) if own_weights else (1.0, -0.5)
        )
        fresh = [slot for slot, prototype in enumerate(prototypes.tolist()) if origin[prototype] < 0]
        for slot in fresh:
            own = member_of[int(result.grouping.prototype_child[prototypes[slot]])]
            weight[number, : len(member_of), slot] = other_mean
            weight[number, own, slot] = own_mean
        whole = [old_groups[source] for source in sources]
        same_members = len(whole) == 1 and [tree.node_of.get(node) for node in whole[0].children] == [*group.children]
        if fresh or not same_members or len(prototypes) < sum(old in sources for old in old_group):
            changed.append(number)
    result.weight.copy_(weight)
    return tuple(changed)

"""What a routed head reads of its taxonomy: tables over nodes, over parents of one level, and the last layers by node.

Shapes: V nodes of the taxonomy, P prototypes; of one level's parents, as many slots as the largest group has
prototypes, and as many members as it has children.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from protoserve.networks.grouping import MASKED_LOGIT
from protoserve.networks.head import PrototypeHead
from protoserve.taxonomy import ROOT, Taxonomy


class NodeTables(NamedTuple):
    """A taxonomy as tables: level [V + 1] of each node, that of the root last; first_child, children [V + 1]; and of
    each node's group of children first, slots [V + 1], its prototypes; group [V + 1] its number, −1 where a node has no
    children or one."""

    taxonomy: Taxonomy
    level: NDArray[np.int64]
    first_child: NDArray[np.int64]
    children: NDArray[np.int64]
    first: NDArray[np.int64]
    slots: NDArray[np.int64]
    group: NDArray[np.int64]

    def parents_at(self, depth: int) -> NDArray[np.int64]:
        """The nodes of this depth, the root's 0, that have children; the root's number is V."""
        return np.flatnonzero((self.level == depth) & (self.children > 0))


def node_tables(head: PrototypeHead) -> NodeTables:
    """The tables of a hierarchical head's taxonomy."""
    taxonomy = head.taxonomy
    root = len(taxonomy.nodes)
    parents = np.where(taxonomy.parent == ROOT, root, taxonomy.parent)
    numbers, first, children = np.unique(parents, return_index=True, return_counts=True)
    tables = np.zeros((4, root + 1), dtype=np.int64)
    tables[0, numbers], tables[1, numbers] = first, children
    group = np.full(root + 1, -1, dtype=np.int64)
    sizes = np.bincount(head.grouping.prototype_group.cpu().numpy(), minlength=len(taxonomy.groups))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for number, siblings in enumerate(taxonomy.groups):
        parent = root if siblings.parent == ROOT else siblings.parent
        tables[2, parent], tables[3, parent], group[parent] = starts[number], sizes[number], number
    level = np.array([*(len(node) for node in taxonomy.nodes), 0], dtype=np.int64)
    first_child, child_count, first_prototype, slots = tables
    return NodeTables(taxonomy, level, first_child, child_count, first_prototype, slots, group)


class LastLayerRows(nn.Module):
    """Every node's row of its group's last layer, 0 past the group's prototypes: of all nodes as one table where that
    is small beside the prototypes (`dense`; then `scaled` is the same divided by the group's temperature), else out of
    one row of numbers."""

    table: Tensor | None
    scaled: Tensor
    flat: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        nodes, slots = len(head.taxonomy.nodes), head.top_k_limit
        self.dense = 4 * (nodes + 1) * slots <= head.prototypes.numel()
        weight, member = head.effective_weight().detach(), head.grouping.node_member.cpu()
        group = head.grouping.node_group.cpu()
        alone = group == weight.shape[0]
        if self.dense:
            rows = weight[torch.where(alone, 0, group).to(weight.device), member.to(weight.device)].clone()
            rows[alone.to(weight.device)] = 0.0
            self.register_buffer("table", rows, persistent=False)
            temperature = functional.pad(head.temperature.detach(), (0, 1), value=1.0)[group.to(weight.device)]
            self.register_buffer("scaled", rows / temperature[:, None], persistent=False)
            return
        self.register_buffer("table", None, persistent=False)
        flat = functional.pad(head.grouping.flat_weights(head.effective_weight().detach()), (0, slots))
        places = np.array([*head.grouping.weight_offsets(), (0, 0)], dtype=np.int64)[group]
        sizes = np.bincount(head.grouping.prototype_group.cpu().numpy(), minlength=weight.shape[0])
        start = torch.from_numpy(places[:, 0] + places[:, 1] * member.numpy())
        count = torch.from_numpy(np.where(alone, 0, np.append(sizes, 0)[group]))
        self.register_buffer("flat", flat, persistent=False)
        self.register_buffer("start", start[:, None], persistent=False)
        self.register_buffer("count", count[:, None], persistent=False)

    def forward(self, nodes: Tensor, slots: int) -> Tensor:
        """[…, slots] the rows of `nodes` int64 […], V for none."""
        if self.table is not None:
            return functional.embedding(nodes, self.table)
        slot = torch.arange(slots, device=nodes.device)
        places = functional.embedding(nodes, self.start) + slot
        # Single numbers, which runtimes gather several times faster as elements than as rows.
        found = self.flat.gather(0, places.reshape(-1)).reshape(-1, *places.shape[1:])
        return torch.where(slot < functional.embedding(nodes, self.count), found, 0.0)


class RoutedLevel(nn.Module):
    """The tables of one routed level over its parents, in their order; one row more is that of no parent.

    below int64 [parents, slots + 2 · members]: the prototypes, P for none; the children, V for none; and their numbers
    among the leaves, 0 for others. absent [parents, members] 0, or −1e30 where there is no such child; temperature
    [parents, 1], None with `slots`, where rows are scaled; not_leaf [parents, members] −1e30 for what is none; inner
    int64 [parents, members] the place of the child among the next level's parents, their number for others, and
    not_inner −1e30 for others.
    """

    below: Tensor
    absent: Tensor
    temperature: Tensor | None
    not_leaf: Tensor | None
    inner: Tensor | None
    not_inner: Tensor | None

    def __init__(self, head: PrototypeHead, tree: NodeTables, depth: int, width: int, slots: int | None) -> None:
        super().__init__()
        # Where tables are large, half as large.
        self.index = torch.int64 if slots else torch.int32
        parents = tree.parents_at(depth)
        self.parents, self.width = len(parents), width
        self.members = int(tree.children[parents].max())
        self.slots = slots or max(1, int(tree.slots[parents].max()))
        nodes, count = len(tree.taxonomy.nodes), head.prototypes.shape[0]
        slot, member = np.arange(self.slots), np.arange(self.members)
        rows = [*parents.tolist(), -1]  # of the last one, nothing is used
        prototype = np.where(slot < tree.slots[rows, None], tree.first[rows, None] + slot, count)
        child = np.where(member < tree.children[rows, None], tree.first_child[rows, None] + member, nodes)
        prototype[-1], child[-1] = count, nodes
        number = np.zeros(nodes + 1, dtype=np.int64)
        number[list(tree.taxonomy.leaves)] = np.arange(len(tree.taxonomy.leaves))
        below = tree.parents_at(depth + 1)
        place = np.full(nodes + 1, len(below), dtype=np.int64)
        place[below] = np.arange(len(below))
        is_leaf = np.append(tree.children[:-1] == 0, False)
        temperature = np.append(head.temperature.detach().cpu().numpy(), 1.0)[tree.group[rows]]
        temperature[-1] = 1.0
        tables: dict[str, NDArray[np.generic] | None] = {
            "below": np.concatenate([prototype, child, number[child]], axis=1),
            "absent": np.where(child < nodes, 0.0, MASKED_LOGIT),
            "temperature": None if slots else temperature[:, None],
            "not_leaf": None if is_leaf[child[child < nodes]].all() else np.where(is_leaf[child], 0.0, MASKED_LOGIT),
            "inner": place[child] if len(below) else None,
            "not_inner": np.where(place[child] < len(below), 0.0, MASKED_LOGIT) if len(below) else None,
        }
        self.has_leaves = bool(is_leaf[child].any())
        for name, table in tables.items():
            if table is not None and table.dtype == np.float64:
                table = table.astype(np.float32)
            self.register_buffer(name, None if table is None else torch.from_numpy(table), persistent=False)
        self.below = self.below.to(self.index)

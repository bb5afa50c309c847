"""The tables of a routed head: over the taxonomy's nodes, over the parents of one level, and the last layers by node.

Shapes: V nodes of the taxonomy, P prototypes, G groups. The tables of a level are padded to its largest group: `slots`
prototypes and `members` children.
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
    """A taxonomy as tables [V + 1] over its nodes, the root last.

    Children are consecutive nodes, and the prototypes of a group are consecutive, too.

    - `depth`: that of the node, 0 for the root;
    - `first_child`, `children`: its first child, and how many it has;
    - `first_prototype`, `prototypes`: the first prototype of the group of its children, and how many it has;
    - `group`: that group, −1 for a node with fewer than two children.
    """

    taxonomy: Taxonomy
    depth: NDArray[np.int64]
    first_child: NDArray[np.int64]
    children: NDArray[np.int64]
    first_prototype: NDArray[np.int64]
    prototypes: NDArray[np.int64]
    group: NDArray[np.int64]

    def parents_at(self, depth: int) -> NDArray[np.int64]:
        """Return the nodes at this depth that have children; the root, at depth 0, is node V."""
        return np.flatnonzero((self.depth == depth) & (self.children > 0))


def node_tables(head: PrototypeHead) -> NodeTables:
    """Make the tables of a hierarchical head's taxonomy."""
    taxonomy = head.taxonomy
    root = len(taxonomy.nodes)
    first_child, children, first_prototype, prototypes = np.zeros((4, root + 1), dtype=np.int64)
    parents, first, counts = np.unique(
        np.where(taxonomy.parent == ROOT, root, taxonomy.parent), return_index=True, return_counts=True
    )
    first_child[parents], children[parents] = first, counts
    group = np.full(root + 1, -1, dtype=np.int64)
    sizes = np.bincount(head.grouping.prototype_group.cpu().numpy(), minlength=len(taxonomy.groups))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    for index, siblings in enumerate(taxonomy.groups):
        parent = root if siblings.parent == ROOT else siblings.parent
        first_prototype[parent], prototypes[parent], group[parent] = offsets[index], sizes[index], index
    depth = np.array([*(len(node) for node in taxonomy.nodes), 0], dtype=np.int64)
    return NodeTables(taxonomy, depth, first_child, children, first_prototype, prototypes, group)


class Counted(nn.Module):
    """Gives prototypes that are off their usual similarity; adds nothing to a graph where none is."""

    table: Tensor | None

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        # [P + 1, 2] what a similarity is multiplied with, and what is then added.
        table = None if head.off is None else torch.stack([~head.off, head.off * head.usual], dim=1).float()
        self.register_buffer("table", None if table is None else functional.pad(table, (0, 0, 0, 1)), persistent=False)

    def forward(self, similarity: Tensor, prototypes: Tensor | None) -> Tensor:
        """Return the similarities as they count: those of the first prototypes [N, K] (None), or [N, …, 1] of
        `prototypes` int64 [N, …]."""
        if self.table is None:
            return similarity
        if prototypes is None:
            factor, addend = self.table[: similarity.shape[1]].unbind(1)
        else:
            factor, addend = torch.split(functional.embedding(prototypes, self.table), 1, dim=-1)
        return similarity * factor + addend


class LastLayerRows(nn.Module):
    """Looks up a node's row of its group's last layer, padded with 0 past the group's prototypes.

    If a table of all nodes' rows is small compared with the prototypes, the rows are stored in one (`dense`), and again
    as `scaled`, divided by the group's temperature. Otherwise they are stored one after the other without padding.
    `counted` prepares the similarities that the rows are multiplied with.
    """

    table: Tensor | None
    scaled: Tensor
    flat: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        nodes, slots = len(head.taxonomy.nodes), head.top_k_limit
        self.counted = Counted(head)
        self.dense = 4 * (nodes + 1) * slots <= head.prototypes.numel()
        weight, member = head.centred_weight().detach(), head.grouping.node_member.cpu()
        group = head.grouping.node_group.cpu()
        no_group = group == weight.shape[0]
        if self.dense:
            rows = weight[torch.where(no_group, 0, group).to(weight.device), member.to(weight.device)].clone()
            rows[no_group.to(weight.device)] = 0.0
            self.register_buffer("table", rows, persistent=False)
            temperature = functional.pad(head.temperature.detach(), (0, 1), value=1.0)[group.to(weight.device)]
            self.register_buffer("scaled", rows / temperature[:, None], persistent=False)
            return
        self.register_buffer("table", None, persistent=False)
        flat = functional.pad(head.grouping.flat_weights(head.centred_weight().detach()), (0, slots))
        offset, stride = np.array([*head.grouping.weight_offsets(), (0, 0)], dtype=np.int64)[group].T
        sizes = np.bincount(head.grouping.prototype_group.cpu().numpy(), minlength=weight.shape[0])
        start = torch.from_numpy(offset + stride * member.numpy())
        count = torch.from_numpy(np.where(no_group, 0, np.append(sizes, 0)[group]))
        self.register_buffer("flat", flat, persistent=False)
        self.register_buffer("start", start[:, None], persistent=False)
        self.register_buffer("count", count[:, None], persistent=False)

    def forward(self, nodes: Tensor, slots: int) -> Tensor:
        """Return the rows […, slots] of `nodes` int64 […]; node V has the row 0."""
        if self.table is not None:
            return functional.embedding(nodes, self.table)
        slot = torch.arange(slots, device=nodes.device)
        indices = functional.embedding(nodes, self.start) + slot
        # Runtimes gather single numbers several times faster as elements than as rows.
        weights = self.flat.gather(0, indices.reshape(-1)).reshape(-1, *indices.shape[1:])
        return torch.where(slot < functional.embedding(nodes, self.count), weights, 0.0)


class RoutedLevel(nn.Module):
    """The tables of one routed level, with a row for each of its parents, in their order, and a last row for no parent.

    The children of up to `width` of these parents are scored.

    - `below` int64 or int32 [parents, slots + 2 · members]: the parent's prototypes (padding: P), its children
      (padding: V), and the children's indices among the leaves (0 for other nodes);
    - `absent` [parents, members]: 0, or −1e30 in the padding;
    - `temperature` [parents, 1], or None if `slots` is given: the rows of the last layers are then `scaled`;
    - `not_leaf` [parents, members]: 0, or −1e30 for a child that is not a leaf; None if all children are leaves;
    - `inner` int64 [parents, members]: the child's index among the next level's parents, their count for other nodes;
    - `not_inner` [parents, members]: 0, or −1e30 for those other nodes. Both are None on the last level.
    """

    below: Tensor
    absent: Tensor
    temperature: Tensor | None
    not_leaf: Tensor | None
    inner: Tensor | None
    not_inner: Tensor | None

    def __init__(self, head: PrototypeHead, tree: NodeTables, depth: int, width: int, slots: int | None) -> None:
        super().__init__()
        # Large tables take half the memory as int32.
        self.index_dtype = torch.int64 if slots else torch.int32
        parents = tree.parents_at(depth)
        self.parents, self.width = len(parents), width
        self.members = int(tree.children[parents].max())
        self.slots = slots or max(1, int(tree.prototypes[parents].max()))
        nodes, count = len(tree.taxonomy.nodes), head.prototypes.shape[0]
        slot, member = np.arange(self.slots), np.arange(self.members)
        rows = [*parents.tolist(), -1]  # the last row is overwritten with padding below
        prototype = np.where(slot < tree.prototypes[rows, None], tree.first_prototype[rows, None] + slot, count)
        child = np.where(member < tree.children[rows, None], tree.first_child[rows, None] + member, nodes)
        prototype[-1], child[-1] = count, nodes
        leaf_index = np.zeros(nodes + 1, dtype=np.int64)
        leaf_index[list(tree.taxonomy.leaves)] = np.arange(len(tree.taxonomy.leaves))
        next_parents = tree.parents_at(depth + 1)
        inner_index = np.full(nodes + 1, len(next_parents), dtype=np.int64)
        inner_index[next_parents] = np.arange(len(next_parents))
        is_leaf = np.append(tree.children[:-1] == 0, False)
        temperature = np.append(head.temperature.detach().cpu().numpy(), 1.0)[tree.group[rows]]
        temperature[-1] = 1.0
        tables: dict[str, NDArray[np.generic] | None] = {
            "below": np.concatenate([prototype, child, leaf_index[child]], axis=1),
            "absent": np.where(child < nodes, 0.0, MASKED_LOGIT),
            "temperature": None if slots else temperature[:, None],
            "not_leaf": None if is_leaf[child[child < nodes]].all() else np.where(is_leaf[child], 0.0, MASKED_LOGIT),
            "inner": inner_index[child] if len(next_parents) else None,
            "not_inner": (
                np.where(inner_index[child] < len(next_parents), 0.0, MASKED_LOGIT) if len(next_parents) else None
            ),
        }
        self.has_leaves = bool(is_leaf[child].any())
        for name, table in tables.items():
            if table is not None and table.dtype == np.float64:
                table = table.astype(np.float32)
            self.register_buffer(name, None if table is None else torch.from_numpy(table), persistent=False)
        self.below = self.below.to(self.index_dtype)


class Search(NamedTuple):
    """What the levels have scored, the trunk first: the `similarities` of prototypes, the `log_probabilities` of the
    nodes `scored`, of the `leaves` among them with their indices; the `bounds` before each routed level, None where all
    parents were expanded; the parents `expanded`."""

    similarities: list[Tensor]
    log_probabilities: list[Tensor]
    scored: list[Tensor]
    leaves: list[tuple[Tensor, Tensor]]
    bounds: list[Tensor | None]
    expanded: list[Tensor]


def most_probable(values: Tensor, width: int, bound: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the `width` largest of `values` [N, K], their indices, and the `bound` [N, 1] of what was left out before,
    raised to the largest of the rest; None if nothing was left out."""
    largest, index = values.topk(min(width + 1, values.shape[1]), dim=1)
    if largest.shape[1] <= width:
        return largest, index, bound
    largest, rest = torch.split(largest, [width, 1], dim=1)
    # Runtimes split faster than they slice.
    index = torch.split(index, [width, 1], dim=1)[0]
    return largest, index, rest if bound is None else torch.maximum(bound, rest)

"""A taxonomy's groups of competing nodes, as tables: from similarities to logits, and to all nodes' probabilities.

Groups differ in size. Their last layers are therefore computed in buckets of groups of similar size, each group padded
to the largest of its bucket. That takes one batch product per bucket instead of one per group, and no table grows with
the largest group of all.

Shapes: N pictures, P prototypes, G groups of competing nodes, M members of the largest group, Q prototypes of the
largest group, V nodes of the taxonomy, L levels; of bucket b, G_b groups of at most M_b members and Q_b prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from protoserve.errors import InputError
from protoserve.taxonomy import Kind, Taxonomy, competing_groups

# The logit of a member that does not exist, in products and top-k. −inf would turn into NaN under multiplication.
MASKED_LOGIT = -1e30
# Costs in units of one weight: of one more bucket, and of one gathered similarity.
BUCKET_COST, SLOT_COST = 65_536, 16
# Up to this many entries, a dense table of the leaves below every node is cheaper than a sum leaf by leaf.
MAX_DENSE_ENTRIES = 1 << 22


class Bucket(NamedTuple):
    """The indices of the `groups` in a bucket, and the `members` and `slots` that each is padded to."""

    groups: tuple[int, ...]
    members: int
    slots: int


def make_buckets(members: NDArray[np.int64], slots: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Divide groups into buckets at the least cost of padding and of buckets.

    `members` int64 [G] are the groups' numbers of nodes, `slots` int64 [G] their numbers of prototypes. Returns each
    bucket's groups, ascending.

    >>> [bucket.tolist() for bucket in make_buckets(np.array([300, 2, 3]), np.array([3000, 20, 30]))]
    [[1, 2], [0]]
    """
    order = np.lexsort((members, slots))
    # least_cost[i] is that of the first i groups in this order; a bucket takes consecutive ones.
    least_cost, start = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        widest = np.maximum.accumulate(members[order[:end]][::-1])[::-1]
        padded = (end - np.arange(end)) * slots[order[end - 1]] * (widest + SLOT_COST)
        costs = least_cost[:end] + BUCKET_COST + padded
        start[end] = costs.argmin()
        least_cost[end] = costs[start[end]]
    buckets = []
    end = len(order)
    while end:
        buckets.append(np.sort(order[start[end] : end]))
        end = int(start[end])
    return buckets[::-1]


def gather_columns(values: Tensor, columns: Tensor) -> Tensor:
    """Take the same `columns` int64 [K] of every row of `values` [N, …]; returns [N, K].

    Runtimes gather single numbers several times faster than they copy slices.
    """
    return values.gather(1, columns.expand(values.shape[0], -1))


def _parts(values: Tensor, sizes: list[int], dimension: int = 0) -> Sequence[Tensor]:
    """Split `values`; a single part adds no node to a graph."""
    return [values] if len(sizes) == 1 else torch.split(values, sizes, dimension)


class Grouping(nn.Module):
    """The tables of a taxonomy's groups, for prototypes of the nodes `prototype_child` [P].

    The prototypes of a group must be adjacent, and the groups in the taxonomy's order; within a group, prototypes fill
    its slots in order. Raises InputError otherwise.

    The tables that other modules read, all int64:

    - `prototype_child` [P]: the node of each prototype;
    - `prototype_group` [P]: its group;
    - `prototype_slot` [P]: its slot in that group;
    - `slot_prototype` [G, Q]: the prototype in each slot of a group, P in its padding;
    - `member_node` [G, M]: the members of each group, V in its padding;
    - `node_member` [V + 1]: the position of each node in its group;
    - `node_group` [V + 1]: the group of each node, G for a node without one;
    - `leaf_node` [leaves]: the leaves' nodes.
    """

    prototype_child: Tensor
    prototype_group: Tensor
    prototype_slot: Tensor
    slot_prototype: Tensor
    member_node: Tensor
    node_member: Tensor
    node_group: Tensor
    slot_source: Tensor
    absent: Tensor
    group_row: Tensor
    path_row: Tensor
    node_row: Tensor
    leaf_node: Tensor
    leaf_path: Tensor
    leaf_first: Tensor
    leaf_count: Tensor
    leaf_weight: Tensor
    bucket_group: Tensor | None
    below: Tensor | None
    leaf_ancestor: Tensor | None

    def __init__(self, taxonomy: Taxonomy, prototype_child: list[int], kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        groups = competing_groups(taxonomy, kind)
        nodes, count = len(taxonomy.nodes), len(prototype_child)
        group_of, member_of = np.full(nodes + 1, len(groups)), np.zeros(nodes + 1, dtype=np.int64)
        for index, group in enumerate(groups):
            group_of[list(group.children)] = index
            member_of[list(group.children)] = np.arange(len(group.children))
        children = np.array(prototype_child, dtype=np.int64)
        owners = group_of[children].astype(np.int64)
        if len(owners) and (owners.max() == len(groups) or (np.diff(owners) < 0).any()):
            raise InputError(
                "prototypes must belong to nodes that compete, those of a group side by side and the groups in the "
                "taxonomy's order; make prototype_child with protoserve.networks.head.prototype_children"
            )
        sizes = np.bincount(owners, minlength=len(groups)).astype(np.int64)
        members = np.array([len(group.children) for group in groups], dtype=np.int64)
        first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        slot = np.arange(count) - first[owners]

        member_node = np.full((len(groups), members.max()), nodes, dtype=np.int64)
        for index, group in enumerate(groups):
            member_node[index, : len(group.children)] = group.children
        slots = np.arange(sizes.max())
        slot_prototype = np.where(slots < sizes[:, None], first[:-1, None] + slots, count)

        # ---- buckets: rows of members, slots of prototypes and weights, one bucket after the other
        self.buckets: list[Bucket] = []
        row_of, weight_of = np.zeros(len(groups), dtype=np.int64), np.zeros(len(groups), dtype=np.int64)
        stride_of = np.zeros(len(groups), dtype=np.int64)
        sources, absent = [], []
        rows = weights = 0
        for chosen in make_buckets(members, sizes):
            height, width = int(members[chosen].max()), int(sizes[chosen].max())
            self.buckets.append(Bucket(tuple(chosen.tolist()), height, width))
            positions = np.arange(len(chosen))
            row_of[chosen], weight_of[chosen] = rows + positions * height, weights + positions * height * width
            stride_of[chosen] = width
            # A slot without a prototype has the weight 0, so it may read any prototype.
            sources.append(
                np.where(slots[:width] < sizes[chosen, None], first[chosen, None] + slots[:width], 0).ravel()
            )
            absent.append(np.where(np.arange(height) < members[chosen, None], 0.0, MASKED_LOGIT).ravel())
            rows += len(chosen) * height
            weights += len(chosen) * height * width
        self.rows = rows

        # ---- the row of each node, also along the paths of leaves; nodes without a group read the 0 past the last row
        no_group = group_of == len(groups)
        group_or_first = np.where(no_group, 0, group_of)
        node_row = np.where(no_group, rows, row_of[group_or_first] + member_of)
        node_weight = np.where(no_group, 0, weight_of[group_or_first] + member_of * stride_of[group_or_first])
        path = np.where(taxonomy.path_at_level < 0, nodes, taxonomy.path_at_level)
        leaves = np.array(taxonomy.leaves, dtype=np.int64)
        tables = {
            "prototype_child": children,
            "prototype_group": owners,
            "prototype_slot": slot,
            "slot_prototype": slot_prototype,
            "member_node": member_node,
            "node_member": member_of,
            "node_group": group_of.astype(np.int64),
            "slot_source": np.concatenate(sources),
            "absent": np.concatenate(absent).astype(np.float32),
            "group_row": np.where(member_node < nodes, node_row[member_node], rows),
            "path_row": node_row[path],
            "node_row": node_row[:-1],
            "leaf_node": leaves,
            "leaf_path": taxonomy.path_at_level[leaves],
            "leaf_first": first[group_or_first[path[leaves]]],
            "leaf_count": np.where(no_group, 0, sizes[group_or_first])[path[leaves]],
            "leaf_weight": node_weight[path[leaves]],
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)), persistent=False)
        order = np.concatenate([bucket.groups for bucket in self.buckets])
        bucket_group = None if len(self.buckets) == 1 else torch.from_numpy(order)
        self.register_buffer("bucket_group", bucket_group, persistent=False)
        below = ancestor = None
        if kind == "flat" and nodes * len(leaves) <= MAX_DENSE_ENTRIES:
            below = torch.from_numpy(taxonomy.leaves_below.astype(np.float32))
        elif kind == "flat":
            ancestor = torch.from_numpy(path[leaves])
        self.register_buffer("below", below, persistent=False)
        self.register_buffer("leaf_ancestor", ancestor, persistent=False)

    def has_full_evidence(self, count: int) -> bool:
        """Whether the group of every node on every path has at least `count` prototypes, so that no evidence is
        missing."""
        return bool((self.leaf_count >= count).all())

    def flat_weights(self, weight: Tensor) -> Tensor:
        """Flatten the last layers [G, M, Q] into one vector, bucket after bucket."""
        return torch.cat([table.reshape(-1) for table in self.weights(weight)])

    def weights(self, weight: Tensor) -> list[Tensor]:
        """Take the weights [G_b, M_b, Q_b] of every bucket from the last layers [G, M, Q]."""
        if len(self.buckets) == 1:
            return [weight]
        return [weight[list(bucket.groups), : bucket.members, : bucket.slots] for bucket in self.buckets]

    def weight_offsets(self) -> list[tuple[int, int]]:
        """Per group: the start of its first member's weights in `flat_weights`, and the stride between members."""
        offsets, start = {}, 0
        for bucket in self.buckets:
            for group in bucket.groups:
                offsets[group] = start, bucket.slots
                start += bucket.members * bucket.slots
        return [offsets[group] for group in range(len(offsets))]

    def split_weights(self, flat: Tensor) -> list[Tensor]:
        """Take the weights [G_b, M_b, Q_b] of every bucket from `flat_weights`."""
        shapes = [(len(bucket.groups), bucket.members, bucket.slots) for bucket in self.buckets]
        parts = _parts(flat, [groups * members * slots for groups, members, slots in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def logits(self, similarity: Tensor, weights: list[Tensor]) -> list[Tensor]:
        """Compute the logits [N, G_b, M_b] of every bucket (−1e30 in a group's padding) from similarities [N, P]."""
        slots = _parts(gather_columns(similarity, self.slot_source), [len(b.groups) * b.slots for b in self.buckets], 1)
        absent = _parts(self.absent, [len(bucket.groups) * bucket.members for bucket in self.buckets])
        logits = []
        for bucket, weight, slot, padding in zip(self.buckets, weights, slots, absent, strict=True):
            own = slot.reshape(-1, len(bucket.groups), bucket.slots).transpose(0, 1)
            products = torch.matmul(own, weight.transpose(1, 2)).transpose(0, 1)
            logits.append(products + padding.reshape(len(bucket.groups), bucket.members))
        return logits

    def concatenate_members(self, tables: list[Tensor]) -> Tensor:
        """Concatenate the members of all buckets [N, G_b, M_b] and a 0; returns [N, rows + 1]."""
        flat = [table.flatten(1) for table in tables]
        return functional.pad(flat[0] if len(flat) == 1 else torch.cat(flat, dim=1), (0, 1))

    def group_logits(self, logits: list[Tensor]) -> Tensor:
        """Put the logits of all buckets into one table [N, G, M], −1e30 in a group's padding."""
        if len(logits) == 1:
            return logits[0]
        rows = functional.pad(torch.cat([table.flatten(1) for table in logits], dim=1), (0, 1), value=MASKED_LOGIT)
        return rows.index_select(1, self.group_row.reshape(-1)).reshape(-1, *self.group_row.shape)

    def logits_of_groups(self, group_logits: Tensor) -> list[Tensor]:
        """Take the logits [N, G_b, M_b] of every bucket from those of all groups [N, G, M]."""
        if len(self.buckets) == 1:
            return [group_logits]
        return [group_logits[:, list(bucket.groups), : bucket.members] for bucket in self.buckets]

    def conditionals(self, logits: list[Tensor], temperature: Tensor) -> list[Tensor]:
        """Compute log-probabilities [N, G_b, M_b] among each group's members from `logits` and `temperature` [G]."""
        if self.bucket_group is not None:
            temperature = temperature.index_select(0, self.bucket_group)
        parts = _parts(temperature[:, None], [len(bucket.groups) for bucket in self.buckets])
        return [torch.log_softmax(table / part, dim=2) for table, part in zip(logits, parts, strict=True)]

    def node_values(self, rows: Tensor) -> Tensor:
        """Take the values [N, V] of all nodes from `concatenate_members`: 0 for a node without a group."""
        return gather_columns(rows, self.node_row)

    def log_probability(self, conditional_rows: Tensor) -> Tensor:
        """Compute the natural logarithms [N, V] of all nodes' probabilities from their conditionals, as
        `concatenate_members` gives them.

        Hierarchical: multiplies along each node's path. Flat: adds the leaves below each inner node.
        """
        if self.kind == "hierarchical":
            return gather_columns(conditional_rows, self.path_row.reshape(-1)).reshape(-1, *self.path_row.shape).sum(2)
        conditional = self.node_values(conditional_rows)
        leaves = conditional.index_select(1, self.leaf_node).exp()
        if self.below is not None:
            sums = torch.matmul(leaves, self.below.t())
        else:
            assert self.leaf_ancestor is not None
            ancestors = self.leaf_ancestor.reshape(1, -1).expand(leaves.shape[0], -1)
            zeros = leaves.new_zeros(leaves.shape[0], self.node_row.shape[0] + 1)
            sums = zeros.scatter_add(1, ancestors, leaves.repeat_interleave(self.leaf_ancestor.shape[1], dim=1))[:, :-1]
        return torch.where(self.node_row < self.rows, conditional, sums.clamp_min(1e-37).log())

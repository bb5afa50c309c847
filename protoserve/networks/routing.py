"""A head that scores only where the answer may lie: below the most probable nodes of every level.

The upper levels, the trunk, have few prototypes and are scored whole, as two products. From there on only the children
of the `width` most probable inner nodes of a level are scored. No leaf is more probable than a node above it, so where
the best leaf found beats every inner node whose children were left out, no other can win: that is the certificate.
Where it does not hold, the full head has to answer.

Few large steps: at this size a graph's time goes into how many nodes it has.

Shapes: N pictures, D dimensions, C cells, P prototypes, V nodes of the taxonomy, L levels, Q prototypes of the largest
group; of a routed level, B parents whose children are scored, of at most M children.
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
from protoserve.networks.distances import at_cells, exact, near
from protoserve.networks.head import NEGATIVE, PrototypeHead
from protoserve.networks.similarity import doubling, similarity, similarity_of_product
from protoserve.taxonomy import ROOT, Taxonomy

# Probabilities of the two heads differ by rounding; within this (natural logarithm) nothing is certain.
MARGIN = 1e-4
# So many prototypes of the upper levels, and numbers in a table of their last layers, cost less than one level routed.
TRUNK, TRUNK_WEIGHTS = 1_024, 1 << 18


class RoutedExplanation(NamedTuple):
    """The outputs of a routed graph, in their order.

    certain bool [N]: whether the certificate holds. path int64 [N, L] (−1 below the leaf); path_log_probability,
    path_logit float [N, L] (0 there); evidence_… as in `Explanation`.
    """

    certain: Tensor
    path: Tensor
    path_log_probability: Tensor
    path_logit: Tensor
    evidence_prototype: Tensor
    evidence_similarity: Tensor
    evidence_weight: Tensor
    evidence_contribution: Tensor
    evidence_cell: Tensor
    evidence_map: Tensor


class _Tree(NamedTuple):
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


def _tree(head: PrototypeHead) -> _Tree:
    taxonomy = head.taxonomy
    root = len(taxonomy.nodes)
    parents = np.where(taxonomy.parent == ROOT, root, taxonomy.parent)
    numbers, first, children = np.unique(parents, return_index=True, return_counts=True)
    tables = np.zeros((4, root + 1), dtype=np.int64)
    tables[0, numbers], tables[1, numbers] = first, children
    group = np.full(root + 1, -1, dtype=np.int64)
    sizes = np.bincount(head.prototype_group.cpu().numpy(), minlength=len(taxonomy.groups))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for number, siblings in enumerate(taxonomy.groups):
        parent = root if siblings.parent == ROOT else siblings.parent
        tables[2, parent], tables[3, parent], group[parent] = starts[number], sizes[number], number
    level = np.array([*(len(node) for node in taxonomy.nodes), 0], dtype=np.int64)
    return _Tree(taxonomy, level, *tables, group)


class _Rows(nn.Module):
    """Every node's row of its group's last layer, 0 past the group's prototypes: of all nodes as one table where that
    is small beside the prototypes, else out of one row of numbers."""

    table: Tensor | None
    flat: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        nodes, slots = len(head.taxonomy.nodes), head.top_k_limit
        self.dense = 4 * (nodes + 1) * slots <= head.prototypes.numel()
        weight, member = head.effective_weight().detach(), head.node_member.cpu()
        group = head.node_group.cpu()
        alone = group == weight.shape[0]
        if self.dense:
            rows = weight[torch.where(alone, 0, group).to(weight.device), member.to(weight.device)].clone()
            rows[alone.to(weight.device)] = 0.0
            self.register_buffer("table", rows, persistent=False)
            return
        self.register_buffer("table", None, persistent=False)
        flat = functional.pad(head.grouping.flat_weights(head.effective_weight().detach()), (0, slots))
        places = np.array([*head.grouping.weight_places(), (0, 0)], dtype=np.int64)[group]
        sizes = np.bincount(head.prototype_group.cpu().numpy(), minlength=weight.shape[0])
        start = torch.from_numpy(places[:, 0] + places[:, 1] * member.numpy())
        count = torch.from_numpy(np.where(alone, 0, np.append(sizes, 0)[group]))
        self.register_buffer("flat", flat[:, None], persistent=False)
        self.register_buffer("start", start[:, None], persistent=False)
        self.register_buffer("count", count[:, None], persistent=False)

    def forward(self, nodes: Tensor, slots: int) -> Tensor:
        """[…, slots] the rows of `nodes` int64 […], V for none."""
        if self.table is not None:
            return functional.embedding(nodes, self.table)
        slot = torch.arange(slots, device=nodes.device)
        found = functional.embedding(functional.embedding(nodes, self.start) + slot, self.flat).squeeze(-1)
        return torch.where(slot < functional.embedding(nodes, self.count), found, 0.0)


class _Level(nn.Module):
    """The tables of one routed level over its parents, in their order; one row more is that of no parent.

    below int64 [parents, slots + 2 · members]: the prototypes, P for none; the children, V for none; and their numbers
    among the leaves, 0 for others. absent [parents, members] 0, or −1e30 where there is no such child; temperature
    [parents, 1]; not_leaf [parents, members] −1e30 for what is none; inner int64 [parents, members] the place of the
    child among the next level's parents, their number for others, and not_inner −1e30 for others.
    """

    below: Tensor
    absent: Tensor
    temperature: Tensor
    not_leaf: Tensor | None
    inner: Tensor | None
    not_inner: Tensor | None

    def __init__(self, head: PrototypeHead, tree: _Tree, depth: int, width: int, slots: int | None) -> None:
        super().__init__()
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
            "absent": np.where(child < nodes, 0.0, NEGATIVE),
            "temperature": temperature[:, None],
            "not_leaf": None if is_leaf[child[child < nodes]].all() else np.where(is_leaf[child], 0.0, NEGATIVE),
            "inner": place[child] if len(below) else None,
            "not_inner": np.where(place[child] < len(below), 0.0, NEGATIVE) if len(below) else None,
        }
        self.has_leaves = bool(is_leaf[child].any())
        for name, table in tables.items():
            if table is not None and table.dtype == np.float64:
                table = table.astype(np.float32)
            self.register_buffer(name, None if table is None else torch.from_numpy(table), persistent=False)


class RoutedHead(nn.Module):
    """`width` parents per level are expanded below the trunk, each with the `top_k` evidence of the path.

    Raises InputError for a flat head, which has one group, and for a width below 1.
    """

    vectors: Tensor
    centre: Tensor
    reference: Tensor
    trunk_weight: Tensor
    trunk_absent: Tensor
    trunk_path: Tensor
    trunk_inner: Tensor
    trunk_leaf_node: Tensor
    trunk_leaf: Tensor
    of_leaf: Tensor
    of_group: Tensor
    no_slot: Tensor

    def __init__(self, head: PrototypeHead, top_k: int, width: int) -> None:
        super().__init__()
        if head.kind != "hierarchical":
            raise InputError("only a hierarchical head can be routed: in a flat one all leaves compete at once")
        if width < 1:
            raise InputError(f"a routed head expands at least 1 node of every level, not {width}")
        self.form, self.epsilon, self.shift, self.unit = head.form, head.epsilon, head.shift, head.sphere
        self.top_k, self.width, self.slots = top_k, width, head.top_k_limit
        with torch.no_grad():
            vectors = head.shifted_vectors().detach()
            # Whether the product is exact enough everywhere; then it is that of multiplied vectors.
            self.direct = self.unit and near(self.form, self.epsilon, vectors) == 0.0
            if self.direct:
                vectors = doubling(self.form, self.epsilon, self.shift) * vectors
            # One more for places without a prototype.
            self.register_buffer("vectors", functional.pad(vectors, (0, 0, 0, 1)))
            if not self.unit:
                self.register_buffer("centre", head.centre.clone()[:, None])
            if self.form == "negative-distance":
                self.register_buffer("reference", functional.pad(head.reference, (0, 1))[:, None])
            self.rows = _Rows(head)
        tree = _tree(head)
        self._make_trunk(head, tree)
        levels, widest = [], width
        for depth in range(self.trunk, tree.taxonomy.depth):
            widest = min(widest if levels else width, len(tree.parents_at(depth)))
            levels.append(_Level(head, tree, depth, widest, self.slots if self.rows.dense else None))
            widest = min(width, widest * levels[-1].members)
        self.levels = nn.ModuleList(levels)
        self._make_answers(tree, levels)

    def _make_trunk(self, head: PrototypeHead, tree: _Tree) -> None:
        """The upper levels as two tables: from similarities to the logits of all groups, side by side and each as long
        as the longest, and from their log-probabilities to the sums along the paths."""
        taxonomy = tree.taxonomy
        parents = np.where(tree.group[:-1] >= 0, tree.level[:-1], -1)
        depth_of_group = {int(tree.group[-1]): 0} | {
            int(tree.group[node]): int(parents[node]) for node in np.flatnonzero(parents >= 0)
        }
        self.trunk = self.trunk_groups = self.trunk_prototypes = self.trunk_members = 0
        for depth in range(1, taxonomy.depth + 1):
            groups = [number for number in range(len(taxonomy.groups)) if depth_of_group[number] < depth]
            prototypes = int((head.prototype_group < len(groups)).sum())
            members = max((len(taxonomy.groups[number].children) for number in groups), default=0)
            few = prototypes <= TRUNK and prototypes * len(groups) * members <= TRUNK_WEIGHTS
            if self.trunk_groups and not few:
                break
            self.trunk, self.trunk_groups = depth, len(groups)
            self.trunk_prototypes, self.trunk_members = prototypes, members
        groups, nodes = self.trunk_groups, int((tree.level[:-1] <= self.trunk).sum())
        weight = torch.zeros(self.trunk_prototypes, groups, self.trunk_members)
        absent = torch.full((groups, self.trunk_members), NEGATIVE)
        along = torch.zeros(groups, self.trunk_members, nodes)
        effective, path = head.effective_weight().detach().cpu(), taxonomy.path_at_level[:nodes]
        for number, group in enumerate(taxonomy.groups[:groups]):
            own = torch.nonzero(head.prototype_group.cpu() == number)[:, 0]
            used = effective[number, : len(group.children), : len(own)] / head.temperature[number].detach().cpu()
            weight[own, number, : len(group.children)] = used.t()
            absent[number, : len(group.children)] = 0.0
            for member, node in enumerate(group.children):
                along[number, member] = torch.from_numpy((path == node).any(1)).float()
        inner = np.flatnonzero((tree.level[:-1] == self.trunk) & (tree.children[:-1] > 0))
        leaves = np.array(taxonomy.leaves)
        for name, table in (
            ("trunk_weight", weight.flatten(1)),
            ("trunk_absent", absent.flatten()),
            ("trunk_path", along.flatten(0, 1)),
            ("trunk_inner", torch.from_numpy(inner)),
            ("trunk_leaf_node", torch.from_numpy(leaves[leaves < nodes])),
            ("trunk_leaf", torch.from_numpy(np.flatnonzero(leaves < nodes))[None]),
        ):
            self.register_buffer(name, table, persistent=False)
        self.trunk_nodes = nodes

    def _make_answers(self, tree: _Tree, levels: Sequence[_Level]) -> None:
        """What is read of a leaf: its path, the last layers' rows and the groups along it, where the probabilities of
        its nodes stand among all that were computed, and its parents at the routed levels; and of a group, its
        prototypes and where their similarities stand. Both places move by that of the parent among those expanded."""
        taxonomy = tree.taxonomy
        leaves, nodes = np.array(taxonomy.leaves), len(taxonomy.nodes)
        path = taxonomy.path_at_level[leaves]
        row = np.where(path < 0, nodes, path)
        parent = np.append(np.where(taxonomy.parent == ROOT, nodes, taxonomy.parent), nodes)
        none = len(taxonomy.groups)
        group = np.where(path < 0, none, np.where(tree.group < 0, none, tree.group)[parent[row]])
        slot = np.arange(self.slots)
        sizes, first = np.zeros((2, none + 1), dtype=np.int64)
        competing = tree.group >= 0
        sizes[tree.group[competing]] = tree.slots[competing]
        first[tree.group[competing]] = tree.first[competing]
        present = slot < sizes[:, None]
        place = np.where(present, first[:, None] + slot, 0)
        among = np.where(path < 0, 0, path)
        # Where only the last level has leaves, the best one's place tells that of its parent.
        self.only_last = not len(self.trunk_leaf_node) and not any(level.has_leaves for level in levels[:-1])
        parents = np.full((len(leaves), len(levels)), -1, dtype=np.int64)
        slots_before, nodes_before = self.trunk_prototypes, self.trunk_nodes
        for number, level in enumerate(levels):
            depth = self.trunk + number
            local = np.full(nodes + 1, -1, dtype=np.int64)
            local[tree.parents_at(depth)] = np.arange(level.parents)
            there = path[:, depth] >= 0
            parents[there, number] = local[path[there, depth - 1]]
            own = np.unique(group[there, depth])
            place[own] = np.where(present[own], slots_before + slot, 0)
            among[there, depth] = nodes_before + path[there, depth] - tree.first_child[path[there, depth - 1]]
            which = np.arange(level.width)
            if self.only_last and number + 1 == len(levels):
                which = which.repeat(level.members)
            for name, size, wide in (("slot", level.slots, self.slots), ("node", level.members, 1)):
                shift = np.zeros((len(which), taxonomy.depth, wide), dtype=np.int64)
                shift[:, depth] = size * which[:, None]
                shift = shift.reshape(len(which), -1)
                self.register_buffer(f"{name}_shift_{number}", torch.from_numpy(shift), persistent=False)
            slots_before += level.width * level.slots
            nodes_before += level.width * level.members
        of_leaf = np.concatenate([path, row, group, among, parents], axis=1)
        of_group = np.stack([place, np.where(present, first[:, None] + slot, -1)], axis=1)
        for name, table in (
            ("of_leaf", of_leaf),
            ("of_group", of_group.reshape(len(of_group), -1)),
            ("no_slot", np.where(present, 0.0, NEGATIVE).astype(np.float32)),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)), persistent=False)
        self.depth, self.even = taxonomy.depth, bool((path >= 0).all())

    # ---- similarities ----------------------------------------------------------------------------------------

    def _similarity(self, values: Tensor, prototypes: Tensor | None) -> Tensor:
        """From products, where these are exact enough, or distances [N, K, …] to the `prototypes` int64 [N, K], or to
        those of the trunk."""
        formula = similarity_of_product if self.direct else similarity
        found = formula(values, self.form, self.epsilon, self.shift)
        if self.form == "negative-distance":
            if prototypes is None:
                return found + self.reference[: self.trunk_prototypes, 0]
            own = functional.embedding(prototypes, self.reference)
            found = found + (own if found.dim() == 3 else own.squeeze(2))
        return found

    def _pooled(self, cells: Tensor, vectors: Tensor, prototypes: Tensor | None) -> Tensor:
        """[N, K] the similarities at the best of `cells` [N, D, C] of `vectors` [K, D] or [N, K, D]."""
        if self.direct:
            product = (
                torch.matmul(cells.transpose(1, 2), vectors.t()).amax(1)
                if vectors.dim() == 2
                else torch.matmul(vectors, cells).amax(2)
            )
            return self._similarity(product, prototypes)
        half = 0.0 if self.unit else -0.5 * (cells * cells).sum(1, keepdim=True)
        cell = (torch.matmul(vectors, cells) + half).argmax(2)
        # So few prototypes are all looked at a second time.
        return self._similarity(exact(at_cells(cells.transpose(1, 2), cell), vectors), prototypes)

    # ---- the way down ----------------------------------------------------------------------------------------

    def forward(self, latent: Tensor) -> RoutedExplanation:
        """The answer for `latent` [N, D, rows, columns]."""
        cells = latent.flatten(2)
        if not self.unit:
            cells = cells - self.centre
        similarities = [self._pooled(cells, self.vectors[: self.trunk_prototypes], None)]
        logits = torch.matmul(similarities[0], self.trunk_weight) + self.trunk_absent
        conditional = torch.log_softmax(logits.reshape(-1, self.trunk_groups, self.trunk_members), dim=2)
        found = [torch.matmul(conditional.flatten(1), self.trunk_path)]
        # Leaves, and how probable they are; the probabilities of inner nodes whose children are not scored.
        leaves: list[tuple[Tensor, Tensor]] = []
        left_out: list[Tensor] = []
        if len(self.trunk_leaf_node):
            chances = found[0].index_select(1, self.trunk_leaf_node)
            leaves.append((chances, self.trunk_leaf.expand(chances.shape[0], -1)))
        chosen: list[Tensor] = []
        if len(self.levels):
            best, parent = self._best(found[0].index_select(1, self.trunk_inner), self.levels[0].width, left_out)
        for number, level in enumerate(self.levels):
            assert isinstance(level, _Level)
            chosen.append(parent)
            similar, chances, numbers = self._score(cells, level, parent, best)
            similarities.append(similar)
            found.append(chances)
            if level.has_leaves:
                masked = chances
                if level.not_leaf is not None:
                    masked = chances + functional.embedding(parent, level.not_leaf).flatten(1)
                leaves.append((masked, numbers.flatten(1)))
            if level.inner is not None and level.not_inner is not None:
                inner = chances + functional.embedding(parent, level.not_inner).flatten(1)
                # Fewer inner nodes than places: what comes for them is no parent, and too improbable to matter.
                best, place = self._best(inner, self.levels[number + 1].width, left_out)
                parent = functional.embedding(parent, level.inner).flatten(1).gather(1, place)
        return self._answer(latent, cells, similarities, found, leaves, left_out, chosen)

    @staticmethod
    def _best(values: Tensor, width: int | Tensor | nn.Module, left_out: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The `width` greatest of `values` [N, K] and their places; the next one bounds what is left out."""
        assert isinstance(width, int)
        best, place = values.topk(min(width + 1, values.shape[1]), dim=1)
        if best.shape[1] <= width:
            return best, place
        best, next_one = best.split([width, 1], dim=1)
        left_out.append(next_one)
        return best, place[:, :width]

    def _score(self, cells: Tensor, level: _Level, parent: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities [N, B · slots], log-probabilities [N, B · members] and numbers among the leaves int64 [N, B,
        members] of the children of `parent` int64 [N, B], whose own log-probabilities are `above`."""
        wide = parent.shape[1]
        below = functional.embedding(parent, level.below)
        prototypes, child, numbers = below.split([level.slots, level.members, level.members], dim=2)
        vectors = functional.embedding(prototypes, self.vectors).reshape(-1, wide * level.slots, self.vectors.shape[1])
        similar = self._pooled(cells, vectors, prototypes.flatten(1))
        weight = self.rows(child, level.slots)
        logit = torch.matmul(weight, similar.reshape(-1, wide, level.slots, 1)).squeeze(3)
        logit = logit / functional.embedding(parent, level.temperature) + functional.embedding(parent, level.absent)
        # Below no parent nothing is: all are as improbable as that.
        return similar, (above[:, :, None] + torch.log_softmax(logit, dim=2)).flatten(1), numbers

    def _answer(
        self,
        latent: Tensor,
        cells: Tensor,
        similarities: list[Tensor],
        found: list[Tensor],
        leaves: list[tuple[Tensor, Tensor]],
        left_out: list[Tensor],
        chosen: list[Tensor],
    ) -> RoutedExplanation:
        depth, top_k, slots = self.depth, self.top_k, self.slots
        chances, numbers = (_joined([*parts]) for parts in zip(*leaves, strict=True))
        best, place = chances.amax(1, keepdim=True), chances.argmax(1, keepdim=True)
        bound = _joined(left_out) if left_out else torch.full_like(best, NEGATIVE)
        if bound.shape[1] > 1:
            bound = bound.amax(1, keepdim=True)
        leaf = numbers.gather(1, place).squeeze(1)
        parts = functional.embedding(leaf, self.of_leaf).split([depth] * 4 + [len(chosen)], dim=1)
        path, row, group, among, parents = parts

        of_group = functional.embedding(group, self.of_group)
        places, prototype = of_group.split([slots, slots], dim=2)
        places = places.flatten(1)
        # Similarities and probabilities stand where the path's parent does among those expanded.
        for number, parent in enumerate(chosen):
            if self.only_last and number + 1 == len(chosen):
                where = place.squeeze(1)
            else:
                where = (parent == parents[:, number : number + 1]).int().argmax(1)
            places = places + functional.embedding(where, self.get_buffer(f"slot_shift_{number}"))
            among = among + functional.embedding(where, self.get_buffer(f"node_shift_{number}"))
        log_probability = _joined(found).gather(1, among)
        similar = _joined(similarities).gather(1, places).reshape(-1, depth, slots)

        weight = self.rows(row, slots)
        parts_of_logit = weight * similar
        contribution, slot = (parts_of_logit + functional.embedding(group, self.no_slot)).topk(top_k, dim=2)
        prototype = prototype.gather(2, slot)
        shown = prototype >= 0
        numbers = prototype.clamp_min(0).flatten(1)
        vectors = functional.embedding(numbers, self.vectors)
        if self.direct:
            values = torch.matmul(vectors, cells)
            cell = values.argmax(2)
        else:
            # From differences, so that they are exact near a prototype and agree with the similarity at the best cell.
            values = exact(cells.transpose(1, 2)[:, None], vectors[:, :, None])
            cell = (-values).argmax(2)
        maps = torch.where(shown.reshape(-1, depth * top_k, 1), self._similarity(values, numbers), 0.0)
        return RoutedExplanation(
            certain=(best > bound + MARGIN).squeeze(1),
            path=path,
            path_log_probability=log_probability if self.even else torch.where(path >= 0, log_probability, 0.0),
            path_logit=parts_of_logit.sum(2),
            evidence_prototype=prototype,
            evidence_similarity=torch.where(shown, similar.gather(2, slot), 0.0),
            evidence_weight=weight.gather(2, slot),
            evidence_contribution=torch.where(shown, contribution, 0.0),
            evidence_cell=torch.where(shown, cell.reshape(-1, depth, top_k), -1),
            evidence_map=maps.reshape(-1, depth, top_k, latent.shape[2], latent.shape[3]),
        )


def _joined(tables: list[Tensor]) -> Tensor:
    """Side by side; one alone costs graphs no node."""
    return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)

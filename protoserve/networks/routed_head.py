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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from protoserve.errors import InputError
from protoserve.graph_signature import RoutedExplanation
from protoserve.networks.distances import gather_cells, refinement_radius, squared_distances
from protoserve.networks.grouping import MASKED_LOGIT
from protoserve.networks.head import PrototypeHead
from protoserve.networks.routed_tables import LastLayerRows, NodeTables, RoutedLevel, node_tables
from protoserve.taxonomy import ROOT

# Probabilities of the two heads differ by rounding; within this (natural logarithm) nothing is certain.
MARGIN = 1e-4
# So many prototypes of the upper levels, and numbers in a table of their last layers, cost less than one level routed.
TRUNK, TRUNK_WEIGHTS = 1_024, 1 << 18


class RoutedHead(nn.Module):
    """`width` parents per level are expanded below the trunk, with the `top_k` evidence of the path.

    The trunk are as many levels as have `trunk` prototypes together; the first that has siblings always is part of it.
    Raises InputError for a flat head, which has one group, and for a width below 1.
    """

    vectors: Tensor
    centre: Tensor
    reference: Tensor | None
    trunk_weight: Tensor
    trunk_absent: Tensor
    trunk_path: Tensor
    trunk_inner: Tensor
    trunk_leaf_node: Tensor
    trunk_leaf: Tensor
    of_leaf: Tensor
    of_group: Tensor
    first: Tensor
    no_slot: Tensor

    def __init__(self, head: PrototypeHead, top_k: int, width: int, trunk: int = TRUNK) -> None:
        super().__init__()
        if head.kind != "hierarchical":
            raise InputError("only a hierarchical head can be routed: in a flat one all leaves compete at once")
        if width < 1:
            raise InputError(f"a routed head expands at least 1 node of every level, not {width}")
        self.similarity, self.unit_length = head.similarity, head.unit_length
        self.top_k, self.width, self.slots = top_k, width, head.top_k_limit
        self.full_evidence = head.grouping.has_full_evidence(top_k)
        with torch.no_grad():
            vectors = head.shifted_vectors().detach()
            # Whether the product is exact enough everywhere; then it is that of multiplied vectors.
            self.direct = self.unit_length and refinement_radius(self.similarity, vectors) == 0.0
            if self.direct:
                vectors = self.similarity.product_factor * vectors
            # One more for places without a prototype.
            self.register_buffer("vectors", functional.pad(vectors, (0, 0, 0, 1)))
            if not self.unit_length:
                self.register_buffer("centre", head.centre.clone()[:, None])
            reference = None if head.reference is None else functional.pad(head.reference, (0, 1))[:, None]
            self.register_buffer("reference", reference)
            self.rows = LastLayerRows(head)
        tree = node_tables(head)
        self._make_trunk(head, tree, trunk)
        levels: list[RoutedLevel] = []
        widest = width
        for depth in range(self.trunk, tree.taxonomy.depth):
            widest = min(widest if levels else width, len(tree.parents_at(depth)))
            levels.append(RoutedLevel(head, tree, depth, widest, self.slots if self.rows.dense else None))
            widest = min(width, widest * levels[-1].members)
        self.levels, self.widths = nn.ModuleList(levels), [level.width for level in levels]
        self._make_answers(tree, levels)

    def _make_trunk(self, head: PrototypeHead, tree: NodeTables, most: int) -> None:
        """The upper levels as two tables: from similarities to the logits of all groups, side by side and each as long
        as the longest, and from their log-probabilities to the sums along the paths."""
        taxonomy = tree.taxonomy
        parents = np.where(tree.group[:-1] >= 0, tree.level[:-1], -1)
        depth_of_group = {int(tree.group[-1]): 0} | {
            int(tree.group[node]): int(parents[node]) for node in np.flatnonzero(parents >= 0)
        }
        self.trunk = self.trunk_groups = self.trunk_prototypes = self.trunk_members = 0
        for depth in range(1, taxonomy.depth + 1):
            # Breadth first, so that the upper levels' groups are the first ones.
            groups = sum(depth_of_group[number] < depth for number in range(len(taxonomy.groups)))
            prototypes = int((head.grouping.prototype_group < groups).sum())
            members = max((len(group.children) for group in taxonomy.groups[:groups]), default=0)
            few = prototypes <= most and prototypes * groups * members <= TRUNK_WEIGHTS
            if self.trunk_groups and not few:
                break
            self.trunk, self.trunk_groups = depth, groups
            self.trunk_prototypes, self.trunk_members = prototypes, members
        groups, nodes = self.trunk_groups, int((tree.level[:-1] <= self.trunk).sum())
        weight = torch.zeros(self.trunk_prototypes, groups, self.trunk_members)
        absent = torch.full((groups, self.trunk_members), MASKED_LOGIT)
        along = torch.zeros(groups, self.trunk_members, nodes)
        effective, path = head.effective_weight().detach().cpu(), taxonomy.path_at_level[:nodes]
        for number, group in enumerate(taxonomy.groups[:groups]):
            own = torch.nonzero(head.grouping.prototype_group.cpu() == number)[:, 0]
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

    def _make_answers(self, tree: NodeTables, levels: Sequence[RoutedLevel]) -> None:
        """What is read of a leaf: its path, the last layers' rows and the groups along it, where the probabilities of
        its nodes stand among all that were computed, and its parents at the routed levels; and of a group, its first
        prototype and where their similarities stand. Both places move by that of the parent among those expanded."""
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
        # Where only the last level has leaves, the best one's place tells that of its parent, and its probability is
        # that of the path's last node.
        self.only_last = not len(self.trunk_leaf_node) and not any(level.has_leaves for level in levels[:-1])
        among = np.where(path < 0, 0, path)[:, : taxonomy.depth - self.only_last]
        parents = np.full((len(leaves), len(levels) - self.only_last), -1, dtype=np.int64)
        slots_before, nodes_before = self.trunk_prototypes, self.trunk_nodes
        for number, level in enumerate(levels):
            depth = self.trunk + number
            local = np.full(nodes + 1, -1, dtype=np.int64)
            local[tree.parents_at(depth)] = np.arange(level.parents)
            there = path[:, depth] >= 0
            own = np.unique(group[there, depth])
            place[own] = np.where(present[own], slots_before + slot, 0)
            if number < parents.shape[1]:
                parents[there, number] = local[path[there, depth - 1]]
                among[there, depth] = nodes_before + path[there, depth] - tree.first_child[path[there, depth - 1]]
            which = np.arange(level.width)
            if self.only_last and number + 1 == len(levels):
                which = which.repeat(level.members)
            for name, size, wide in (("slot", level.slots, self.slots), ("node", level.members, 1)):
                columns = taxonomy.depth if name == "slot" else among.shape[1]
                if depth >= columns:
                    continue
                shift = np.zeros((len(which), columns, wide), dtype=np.int64)
                shift[:, depth] = size * which[:, None]
                table = torch.from_numpy(shift.reshape(len(which), -1))
                self.register_buffer(f"{name}_shift_{number}", table, persistent=False)
            slots_before += level.width * level.slots
            nodes_before += level.width * level.members
        self.depth, self.even = taxonomy.depth, bool((path >= 0).all())
        # Where no path ends early, the rows of the last layers are those of the path.
        rows = row[:, :0] if self.even else row
        of_leaf = np.concatenate([path, group, among, rows, parents], axis=1)
        widths = [taxonomy.depth, taxonomy.depth, among.shape[1], rows.shape[1]]
        self.columns = [width for width in widths if width] + [1] * parents.shape[1]
        tables: dict[str, NDArray[np.generic]] = {
            "of_leaf": of_leaf,
            "of_group": place.astype(np.int64 if self.rows.dense else np.int32),
            "first": first[:, None],
            "no_slot": np.where(present, 0.0, MASKED_LOGIT).astype(np.float32),
        }
        for name, content in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(content)), persistent=False)

    # ---- similarities ----------------------------------------------------------------------------------------

    def _similarity(self, values: Tensor, prototypes: Tensor | None) -> Tensor:
        """From products, where these are exact enough, or distances: [N, …, 1 or C] to the `prototypes` int64 [N, …],
        or [N, K] to those of the trunk."""
        reference = self.reference
        if reference is not None:
            if prototypes is None:
                reference = reference[: self.trunk_prototypes, 0]
            else:
                reference = functional.embedding(prototypes, reference)
        formula = self.similarity.of_product if self.direct else self.similarity.of_distance
        return formula(values, reference)

    def _of_trunk(self, cells: Tensor) -> Tensor:
        """[N, K] the similarities of the trunk's prototypes at the best of `cells` [N, 1, D, C]."""
        vectors = self.vectors[: self.trunk_prototypes]
        if self.direct:
            return self._similarity(torch.matmul(cells.transpose(2, 3), vectors.t()).amax((1, 2)), None)
        return self._similarity(self._nearest(cells[:, 0], vectors), None)

    def _of_level(self, cells: Tensor, prototypes: Tensor) -> Tensor:
        """[N, B, slots, 1] the similarities of `prototypes` int64 [N, B, slots] at the best of `cells` [N, 1, D, C]."""
        vectors = functional.embedding(prototypes, self.vectors)
        if self.direct:
            return self._similarity(torch.matmul(vectors, cells).amax(3, keepdim=True), prototypes)
        nearest = self._nearest(cells[:, 0], vectors.flatten(1, 2))
        return self._similarity(nearest.reshape(-1, *prototypes.shape[1:], 1), prototypes)

    def _nearest(self, cells: Tensor, vectors: Tensor) -> Tensor:
        """[N, K] the distances of `vectors` [K, D] or [N, K, D] to the nearest of `cells` [N, D, C]."""
        half = 0.0 if self.unit_length else -0.5 * (cells * cells).sum(1, keepdim=True)
        cell = (torch.matmul(vectors, cells) + half).argmax(2)
        # So few prototypes are all looked at a second time.
        return squared_distances(gather_cells(cells.transpose(1, 2), cell), vectors)

    # ---- the way down ----------------------------------------------------------------------------------------

    def forward(self, latent: Tensor) -> RoutedExplanation[Tensor, Tensor, Tensor]:
        """The answer for `latent` [N, D, rows, columns]."""
        cells = latent.reshape(-1, 1, latent.shape[1], latent.shape[2] * latent.shape[3])
        if not self.unit_length:
            cells = cells - self.centre
        similarities = [self._of_trunk(cells)]
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
            best, parent = self._best(found[0].index_select(1, self.trunk_inner), self.widths[0], left_out)
        for number, level in enumerate(self.levels):
            assert isinstance(level, RoutedLevel)
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
                best, place = self._best(inner, self.widths[number + 1], left_out)
                parent = functional.embedding(parent, level.inner).flatten(1).gather(1, place)
        return self._answer(latent, cells, similarities, found, leaves, left_out, chosen)

    @staticmethod
    def _best(values: Tensor, width: int, left_out: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The `width` greatest of `values` [N, K] and their places; the next one bounds what is left out."""
        best, place = values.topk(min(width + 1, values.shape[1]), dim=1)
        if best.shape[1] <= width:
            return best, place
        best, next_one = torch.split(best, [width, 1], dim=1)
        left_out.append(next_one)
        # Graphs split in less time than they slice.
        return best, torch.split(place, [width, 1], dim=1)[0]

    def _score(self, cells: Tensor, level: RoutedLevel, parent: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities [N, B · slots], log-probabilities [N, B · members] and numbers among the leaves int64 [N, B,
        members] of the children of `parent` int64 [N, B], whose own log-probabilities are `above`."""
        below = functional.embedding(parent, level.below).long()
        prototypes, child, numbers = torch.split(below, [level.slots, level.members, level.members], dim=2)
        similar = self._of_level(cells, prototypes)
        if level.temperature is None:
            logit = torch.matmul(functional.embedding(child, self.rows.scaled), similar).squeeze(3)
        else:
            logit = torch.matmul(self.rows(child, level.slots), similar).squeeze(3)
            logit = logit / functional.embedding(parent, level.temperature)
        logit = logit + functional.embedding(parent, level.absent)
        # Below no parent nothing is: all are as improbable as that.
        return similar.flatten(1), (above[:, :, None] + torch.log_softmax(logit, dim=2)).flatten(1), numbers

    def _answer(
        self,
        latent: Tensor,
        cells: Tensor,
        similarities: list[Tensor],
        found: list[Tensor],
        leaves: list[tuple[Tensor, Tensor]],
        left_out: list[Tensor],
        chosen: list[Tensor],
    ) -> RoutedExplanation[Tensor, Tensor, Tensor]:
        depth, top_k, slots = self.depth, self.top_k, self.slots
        chances, numbers = (_joined([*parts]) for parts in zip(*leaves, strict=True))
        best, place = chances.topk(1, dim=1)
        bound = _joined(left_out) if left_out else torch.full_like(best, MASKED_LOGIT)
        if bound.shape[1] > 1:
            bound = bound.amax(1, keepdim=True)
        leaf = numbers.gather(1, place).squeeze(1)
        path, group, among, *others = torch.split(functional.embedding(leaf, self.of_leaf), self.columns, dim=1)
        row, parents = (path, others) if self.even else (others[0], others[1:])

        places = functional.embedding(group, self.of_group).long().flatten(1)
        # Similarities and probabilities stand where the path's parent does among those expanded.
        for number, parent in enumerate(chosen):
            if self.only_last and number + 1 == len(chosen):
                where = place.squeeze(1)
            else:
                where = (parent == parents[number]).int().argmax(1)
                among = among + functional.embedding(where, self.get_buffer(f"node_shift_{number}"))
            places = places + functional.embedding(where, self.get_buffer(f"slot_shift_{number}"))
        if self.only_last:
            log_probability = torch.cat([_joined(found[:-1]).gather(1, among), best], dim=1)
        else:
            log_probability = _joined(found).gather(1, among)
        similar = _joined(similarities).gather(1, places).reshape(-1, depth, slots)

        weight = self.rows(row, slots)
        parts_of_logit = weight * similar
        contribution, slot = (parts_of_logit + functional.embedding(group, self.no_slot)).topk(top_k, dim=2)
        prototype = functional.embedding(group, self.first) + slot
        shown = None if self.full_evidence else contribution > 0.5 * MASKED_LOGIT
        numbers = prototype if shown is None else torch.where(shown, prototype, 0)
        vectors = functional.embedding(numbers, self.vectors)
        if self.direct:
            values = torch.matmul(vectors, cells)
            cell = values.argmax(3)
        else:
            # From differences, so that they are exact near a prototype and agree with the similarity at the best cell.
            values = squared_distances(cells.transpose(2, 3)[:, :, None], vectors[:, :, :, None])
            cell = (-values).argmax(3)
        maps = self._similarity(values, numbers)
        shown_similarity = similar.gather(2, slot)
        if shown is not None:
            prototype, cell = torch.where(shown, prototype, -1), torch.where(shown, cell, -1)
            maps = torch.where(shown[:, :, :, None], maps, 0.0)
            contribution = torch.where(shown, contribution, 0.0)
            shown_similarity = torch.where(shown, shown_similarity, 0.0)
        return RoutedExplanation(
            certain=(best > bound + MARGIN).squeeze(1),
            path=path,
            path_log_probability=log_probability if self.even else torch.where(path >= 0, log_probability, 0.0),
            path_logit=parts_of_logit.sum(2),
            evidence_prototype=prototype,
            evidence_similarity=shown_similarity,
            evidence_weight=weight.gather(2, slot),
            evidence_contribution=contribution,
            evidence_cell=cell,
            evidence_map=maps.reshape(-1, depth, top_k, latent.shape[2], latent.shape[3]),
        )


def _joined(tables: list[Tensor]) -> Tensor:
    """Side by side; one alone costs graphs no node."""
    return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)

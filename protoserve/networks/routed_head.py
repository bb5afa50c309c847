"""A head that searches a large taxonomy with a beam: it scores only children of the most probable nodes of each level.

The upper levels, called the trunk, have few prototypes; they are scored completely, with two matrix products. On every
deeper level, only the children of the `width` most probable inner nodes are scored. A leaf is at most as probable as
any of its ancestors. So if the best scored leaf is more probable than every inner node whose children were not scored,
no other leaf can be more probable. That is the certificate. Where it does not hold, the full head must answer.

The computation is a few large operations, because the time of a graph of this size depends mainly on its node count.

Shapes: N pictures, D dimensions, C cells, P prototypes, K prototypes of the trunk, V nodes of the taxonomy, L levels,
Q prototypes of the largest group; on a routed level, B expanded parents with at most M children each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from protoserve.errors import InputError
from protoserve.graph_signature import RoutedSearch
from protoserve.networks.distances import gather_cells, refinement_radius, squared_distances
from protoserve.networks.grouping import MASKED_LOGIT
from protoserve.networks.head import PrototypeHead
from protoserve.networks.pieces import Pieces, RoutedCandidates, concatenate, ranking
from protoserve.networks.routed_tables import LastLayerRows, NodeTables, RoutedLevel, Search, most_probable, node_tables
from protoserve.taxonomy import ROOT

# The certificate needs at least this difference of natural logarithms: the two heads differ by rounding.
MARGIN = 1e-4
# A trunk of up to this many prototypes, and of this many weights in its table, costs less than routing one more level.
TRUNK, TRUNK_WEIGHTS = 1_024, 1 << 18


class RoutedHead(nn.Module):
    """Expands `width` parents per level below the trunk and returns the `top_k` pieces of evidence along the path.

    The trunk holds the upper levels that have at most `trunk` prototypes together, and always the first level that has
    siblings. Raises InputError for a flat head, which has one group, and for a width below 1.
    """

    vectors: Tensor
    centre: Tensor
    reference: Tensor | None
    trunk_weight: Tensor
    trunk_absent: Tensor
    trunk_path: Tensor
    trunk_inner: Tensor
    trunk_node: Tensor
    trunk_leaf_node: Tensor
    trunk_leaf: Tensor
    leaf_table: Tensor
    group_similarity: Tensor
    group_first: Tensor
    group_absent: Tensor
    group_usual: Tensor

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
            # If products are exact enough for all similarities, they are taken of vectors times `product_factor`.
            self.direct = self.unit_length and refinement_radius(self.similarity, vectors) == 0.0
            if self.direct:
                vectors = self.similarity.product_factor * vectors
            # The row P is read by slots without a prototype.
            self.register_buffer("vectors", functional.pad(vectors, (0, 0, 0, 1)))
            if not self.unit_length:
                self.register_buffer("centre", head.centre.clone()[:, None])
            reference = None if head.reference is None else functional.pad(head.reference, (0, 1))[:, None]
            self.register_buffer("reference", reference)
            self.rows = LastLayerRows(head)
        tree = node_tables(head)
        self._make_trunk(head, tree, trunk)
        levels: list[RoutedLevel] = []
        level_width = width
        for depth in range(self.trunk, tree.taxonomy.depth):
            level_width = min(level_width, len(tree.parents_at(depth)))
            levels.append(RoutedLevel(head, tree, depth, level_width, self.slots if self.rows.dense else None))
            level_width = min(width, level_width * levels[-1].members)
        self.levels, self.widths = nn.ModuleList(levels), [level.width for level in levels]
        self._make_path_tables(tree, levels, head.usual.detach().cpu().numpy())

    def _make_trunk(self, head: PrototypeHead, tree: NodeTables, limit: int) -> None:
        """Make the trunk's two matrices, for at most `limit` prototypes where possible.

        The first maps similarities to the logits of all groups, each padded to the largest group. The second sums the
        groups' log-probabilities along each node's path.
        """
        taxonomy = tree.taxonomy
        competing = np.flatnonzero(tree.group >= 0)
        depth_of_group = np.zeros(len(taxonomy.groups), dtype=np.int64)
        depth_of_group[tree.group[competing]] = tree.depth[competing]
        self.trunk = self.trunk_groups = self.trunk_prototypes = self.trunk_members = 0
        for depth in range(1, taxonomy.depth + 1):
            # Groups are in breadth-first order, so those of the upper levels come first.
            groups = int((depth_of_group < depth).sum())
            prototypes = int((head.grouping.prototype_group < groups).sum())
            members = max((len(group.children) for group in taxonomy.groups[:groups]), default=0)
            within_limits = prototypes <= limit and prototypes * groups * members <= TRUNK_WEIGHTS
            if self.trunk_groups and not within_limits:
                break
            self.trunk, self.trunk_groups = depth, groups
            self.trunk_prototypes, self.trunk_members = prototypes, members
        groups, nodes = self.trunk_groups, int((tree.depth[:-1] <= self.trunk).sum())
        weight = torch.zeros(self.trunk_prototypes, groups, self.trunk_members)
        absent = torch.full((groups, self.trunk_members), MASKED_LOGIT)
        on_path = torch.zeros(groups, self.trunk_members, nodes)
        centred, path = head.centred_weight().detach().cpu(), taxonomy.path_at_level[:nodes]
        for index, group in enumerate(taxonomy.groups[:groups]):
            own = torch.nonzero(head.grouping.prototype_group.cpu() == index)[:, 0]
            scaled = centred[index, : len(group.children), : len(own)] / head.temperature[index].detach().cpu()
            weight[own, index, : len(group.children)] = scaled.t()
            absent[index, : len(group.children)] = 0.0
            for member, node in enumerate(group.children):
                on_path[index, member] = torch.from_numpy((path == node).any(1)).float()
        inner = np.flatnonzero((tree.depth[:-1] == self.trunk) & (tree.children[:-1] > 0))
        leaves = np.array(taxonomy.leaves)
        for name, table in (
            ("trunk_weight", weight.flatten(1)),
            ("trunk_absent", absent.flatten()),
            ("trunk_path", on_path.flatten(0, 1)),
            ("trunk_inner", torch.from_numpy(inner)),
            ("trunk_node", torch.arange(nodes)[None]),
            ("trunk_leaf_node", torch.from_numpy(leaves[leaves < nodes])),
            ("trunk_leaf", torch.from_numpy(np.flatnonzero(leaves < nodes))[None]),
        ):
            self.register_buffer(name, table, persistent=False)
        self.trunk_nodes = nodes

    def _make_path_tables(self, tree: NodeTables, levels: Sequence[RoutedLevel], usual: NDArray[np.float32]) -> None:
        """Make the tables that `_explain_path` looks the best leaf and its groups up in.

        A row of `leaf_table` describes a leaf: its path; the groups along it; the index of each of its nodes among all
        computed log-probabilities; the nodes whose rows of the last layers it reads; its parents among those of each
        routed level. A row of `group_similarity` holds the indices of a group's prototypes among all computed
        similarities. Both kinds of index are those of the first expanded parent of a level; `node_shift_…` and
        `slot_shift_…` hold the offsets to add for the others.
        """
        taxonomy = tree.taxonomy
        leaves, nodes = np.array(taxonomy.leaves), len(taxonomy.nodes)
        path = taxonomy.path_at_level[leaves]
        path_row = np.where(path < 0, nodes, path)
        parent = np.append(np.where(taxonomy.parent == ROOT, nodes, taxonomy.parent), nodes)
        no_group = len(taxonomy.groups)
        group = np.where(path < 0, no_group, np.where(tree.group < 0, no_group, tree.group)[parent[path_row]])
        slot = np.arange(self.slots)
        sizes, first = np.zeros((2, no_group + 1), dtype=np.int64)
        competing = tree.group >= 0
        sizes[tree.group[competing]] = tree.prototypes[competing]
        first[tree.group[competing]] = tree.first_prototype[competing]
        present = slot < sizes[:, None]
        similarity_index = np.where(present, first[:, None] + slot, 0)
        # If only the last level has leaves, the best leaf's position gives its parent's, and its probability is that of
        # the last node of the path.
        self.leaves_on_last_level = not len(self.trunk_leaf_node) and not any(level.has_leaves for level in levels[:-1])
        node_index = np.where(path < 0, 0, path)[:, : taxonomy.depth - self.leaves_on_last_level]
        parent_index = np.full((len(leaves), len(levels) - self.leaves_on_last_level), -1, dtype=np.int64)
        slots_before, nodes_before = self.trunk_prototypes, self.trunk_nodes
        for step, level in enumerate(levels):
            depth = self.trunk + step
            index_of_parent = np.full(nodes + 1, -1, dtype=np.int64)
            index_of_parent[tree.parents_at(depth)] = np.arange(level.parents)
            reached = path[:, depth] >= 0
            own = np.unique(group[reached, depth])
            similarity_index[own] = np.where(present[own], slots_before + slot, 0)
            if step < parent_index.shape[1]:
                above = path[reached, depth - 1]
                parent_index[reached, step] = index_of_parent[above]
                node_index[reached, depth] = nodes_before + path[reached, depth] - tree.first_child[above]
            positions = np.arange(level.width)
            if self.leaves_on_last_level and step + 1 == len(levels):
                positions = positions.repeat(level.members)
            for name, size, repeats in (("slot", level.slots, self.slots), ("node", level.members, 1)):
                columns = taxonomy.depth if name == "slot" else node_index.shape[1]
                if depth >= columns:
                    continue
                shift = np.zeros((len(positions), columns, repeats), dtype=np.int64)
                shift[:, depth] = size * positions[:, None]
                table = torch.from_numpy(shift.reshape(len(positions), -1))
                self.register_buffer(f"{name}_shift_{step}", table, persistent=False)
            slots_before += level.width * level.slots
            nodes_before += level.width * level.members
        self.depth, self.equal_depth = taxonomy.depth, bool((path >= 0).all())
        # If all leaves have the same depth, the rows of the last layers are those of the path.
        weight_row = path_row[:, :0] if self.equal_depth else path_row
        leaf_table = np.concatenate([path, group, node_index, weight_row, parent_index], axis=1)
        widths = [taxonomy.depth, taxonomy.depth, node_index.shape[1], weight_row.shape[1]]
        self.leaf_columns = [width for width in widths if width] + [1] * parent_index.shape[1]
        tables: dict[str, NDArray[np.generic]] = {
            "leaf_table": leaf_table,
            "group_similarity": similarity_index.astype(np.int64 if self.rows.dense else np.int32),
            "group_first": first[:, None],
            "group_usual": np.where(present, usual[np.where(present, first[:, None] + slot, 0)], np.float32(0.0)),
            "group_absent": np.where(present, 0.0, MASKED_LOGIT).astype(np.float32),
        }
        for name, content in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(content)), persistent=False)

    # ---- similarities ----------------------------------------------------------------------------------------

    def _similarity(self, values: Tensor, prototypes: Tensor | None) -> Tensor:
        """Compute similarities from products if `direct`, else from distances.

        `values` are [N, …, 1 or C] for the `prototypes` int64 [N, …], or [N, K] for those of the trunk (None).
        """
        reference = self.reference
        if reference is not None:
            if prototypes is None:
                reference = reference[: self.trunk_prototypes, 0]
            else:
                reference = functional.embedding(prototypes, reference)
        formula = self.similarity.of_product if self.direct else self.similarity.of_distance
        return formula(values, reference)

    def _trunk_similarity(self, cells: Tensor) -> Tensor:
        """Compute the similarities [N, K] of the trunk's prototypes at the best of `cells` [N, 1, D, C]."""
        vectors = self.vectors[: self.trunk_prototypes]
        if self.direct:
            return self._similarity(torch.matmul(cells.transpose(2, 3), vectors.t()).amax((1, 2)), None)
        return self._similarity(self._nearest(cells[:, 0], vectors), None)

    def _level_similarity(self, cells: Tensor, prototypes: Tensor) -> Tensor:
        """Compute the similarities [N, B, slots, 1] of `prototypes` int64 [N, B, slots] at the best of `cells`
        [N, 1, D, C]."""
        vectors = functional.embedding(prototypes, self.vectors)
        if self.direct:
            return self._similarity(torch.matmul(vectors, cells).amax(3, keepdim=True), prototypes)
        nearest = self._nearest(cells[:, 0], vectors.flatten(1, 2))
        return self._similarity(nearest.reshape(-1, *prototypes.shape[1:], 1), prototypes)

    def _nearest(self, cells: Tensor, vectors: Tensor) -> Tensor:
        """Compute the squared distances [N, K] of `vectors` [K, D] or [N, K, D] to the nearest of `cells` [N, D, C]."""
        half = 0.0 if self.unit_length else -0.5 * (cells * cells).sum(1, keepdim=True)
        cell = (torch.matmul(vectors, cells) + half).argmax(2)
        # There are so few prototypes that all distances are refined.
        return squared_distances(gather_cells(cells.transpose(1, 2), cell), vectors)

    # ---- the search ------------------------------------------------------------------------------------------

    def forward(self, latent: Tensor) -> RoutedSearch[Tensor, Tensor, Tensor]:
        """Compute the outputs for `latent` [N, D, rows, columns]."""
        cells = latent.reshape(-1, 1, latent.shape[1], latent.shape[2] * latent.shape[3])
        if not self.unit_length:
            cells = cells - self.centre
        similarities = [self.rows.counted(self._trunk_similarity(cells), None)]
        logits = torch.matmul(similarities[0], self.trunk_weight) + self.trunk_absent
        conditional = torch.log_softmax(logits.reshape(-1, self.trunk_groups, self.trunk_members), dim=2)
        log_probabilities = [torch.matmul(conditional.flatten(1), self.trunk_path)]
        # The scored leaves: their log-probabilities, and their indices among all leaves.
        leaves: list[tuple[Tensor, Tensor]] = []
        scored = [self.trunk_node.expand(latent.shape[0], -1)]
        # The log-probability of the most probable inner node so far that was not expanded, before each routed level.
        bounds: list[Tensor | None] = []
        bound: Tensor | None
        if len(self.trunk_leaf_node):
            trunk_leaves = log_probabilities[0].index_select(1, self.trunk_leaf_node)
            leaves.append((trunk_leaves, self.trunk_leaf.expand(trunk_leaves.shape[0], -1)))
        expanded: list[Tensor] = []
        if len(self.levels):
            inner = log_probabilities[0].index_select(1, self.trunk_inner)
            parent_log_probability, parent, bound = most_probable(inner, self.widths[0], None)
        for step, level in enumerate(self.levels):
            assert isinstance(level, RoutedLevel)
            expanded.append(parent)
            bounds.append(bound)
            similarity, log_probability, child, leaf_index = self._score(cells, level, parent, parent_log_probability)
            scored.append(child.flatten(1))
            similarities.append(similarity)
            log_probabilities.append(log_probability)
            if level.has_leaves:
                masked = log_probability
                if level.not_leaf is not None:
                    masked = log_probability + functional.embedding(parent, level.not_leaf).flatten(1)
                leaves.append((masked, leaf_index.flatten(1)))
            if level.inner is not None and level.not_inner is not None:
                inner = log_probability + functional.embedding(parent, level.not_inner).flatten(1)
                # If there are fewer inner nodes than the width, masked nodes without children fill it up.
                parent_log_probability, index, bound = most_probable(inner, self.widths[step + 1], bound)
                parent = functional.embedding(parent, level.inner).flatten(1).gather(1, index)
        search = Search(similarities, log_probabilities, scored, leaves, bounds, expanded)
        return self._explain_path(latent, cells, search)

    def _score(
        self, cells: Tensor, level: RoutedLevel, parent: Tensor, parent_log_probability: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score the children of `parent` int64 [N, B], whose log-probabilities are `parent_log_probability` [N, B].

        Returns the similarities [N, B · slots] of their prototypes, their log-probabilities [N, B · members], and their
        nodes and their indices among the leaves, both int64 [N, B, members].
        """
        below = functional.embedding(parent, level.below).long()
        prototypes, child, leaf_index = torch.split(below, [level.slots, level.members, level.members], dim=2)
        similarity = self.rows.counted(self._level_similarity(cells, prototypes), prototypes)
        if level.temperature is None:
            logit = torch.matmul(functional.embedding(child, self.rows.scaled), similarity).squeeze(3)
        else:
            logit = torch.matmul(self.rows(child, level.slots), similarity).squeeze(3)
            logit = logit / functional.embedding(parent, level.temperature)
        logit = logit + functional.embedding(parent, level.absent)
        # Where there is no parent, all members are padding; they stay as improbable as the masked parent.
        log_probability = parent_log_probability[:, :, None] + torch.log_softmax(logit, dim=2)
        return similarity.flatten(1), log_probability.flatten(1), child, leaf_index

    def _explain_path(self, latent: Tensor, cells: Tensor, search: Search) -> RoutedSearch[Tensor, Tensor, Tensor]:
        """Pick the best of the scored leaves and compute the outputs along its path."""
        depth, top_k, slots = self.depth, self.top_k, self.slots
        similarities, log_probabilities, expanded = search.similarities, search.log_probabilities, search.expanded
        leaf_log_probability, leaf_index = (concatenate([*tables]) for tables in zip(*search.leaves, strict=True))
        best, best_index = leaf_log_probability.topk(1, dim=1)
        everything = torch.full_like(best, MASKED_LOGIT)
        bounds = [everything if bound is None else bound for bound in (*[None] * self.trunk, *search.bounds)]
        leaf = leaf_index.gather(1, best_index).squeeze(1)
        path, group, node_index, *others = torch.split(
            functional.embedding(leaf, self.leaf_table), self.leaf_columns, dim=1
        )
        weight_row, parents = (path, others) if self.equal_depth else (others[0], others[1:])

        similarity_index = functional.embedding(group, self.group_similarity).long().flatten(1)
        # Add the offset of the path's parent among the expanded ones of each level.
        for step, parent in enumerate(expanded):
            if self.leaves_on_last_level and step + 1 == len(expanded):
                position = best_index.squeeze(1)
            else:
                position = (parent == parents[step]).int().argmax(1)
                node_index = node_index + functional.embedding(position, self.get_buffer(f"node_shift_{step}"))
            similarity_index = similarity_index + functional.embedding(position, self.get_buffer(f"slot_shift_{step}"))
        scored_log_probability = concatenate(log_probabilities)
        log_probability = scored_log_probability.gather(1, node_index)
        if self.leaves_on_last_level:
            log_probability = torch.cat([log_probability, best], dim=1)
        similarity = concatenate(similarities).gather(1, similarity_index).reshape(-1, depth, slots)

        weight = self.rows(weight_row, slots)
        # A weight is 0 past the group's prototypes.
        unusual = similarity - functional.embedding(group, self.group_usual)
        contributions = weight * unusual
        order = ranking(contributions, unusual)
        absent = functional.embedding(group, self.group_absent)
        first = functional.embedding(group, self.group_first)
        candidates = RoutedCandidates(cells, similarity, weight, contributions, first)
        supporting, maps = self._pieces(candidates, order + absent)
        against, _ = self._pieces(candidates, absent - order)
        return RoutedSearch(
            certain=(best > bounds[-1] + MARGIN).squeeze(1),
            path=path,
            path_log_probability=log_probability if self.equal_depth else torch.where(path >= 0, log_probability, 0.0),
            path_logit=(weight * similarity).sum(2),
            evidence_prototype=supporting.prototype,
            evidence_similarity=supporting.similarity,
            evidence_weight=supporting.weight,
            evidence_contribution=supporting.contribution,
            evidence_cell=supporting.cell,
            evidence_map=maps.reshape(-1, depth, top_k, latent.shape[2], latent.shape[3]),
            positive_contribution=contributions.relu().sum(2),
            against_prototype=against.prototype,
            against_similarity=against.similarity,
            against_weight=against.weight,
            against_contribution=against.contribution,
            against_cell=against.cell,
            path_similarity=similarity,
            scored_node=concatenate(search.scored),
            scored_log_probability=scored_log_probability,
            unscored_bound=torch.cat(bounds, dim=1),
        )

    def _pieces(self, candidates: RoutedCandidates, ranking: Tensor) -> tuple[Pieces, Tensor]:
        """Return the `top_k` prototypes that are greatest in `ranking` [N, L, slots], and their similarities at every
        cell [N, L, top_k, C]."""
        best, slot = ranking.topk(self.top_k, dim=2)
        prototype = candidates.first + slot
        present = None if self.full_evidence else best > 0.5 * MASKED_LOGIT
        chosen = prototype if present is None else torch.where(present, prototype, 0)
        vectors = functional.embedding(chosen, self.vectors)
        if self.direct:
            values = torch.matmul(vectors, candidates.cells)
            cell = values.argmax(3)
        else:
            # Differences are exact near a prototype, and agree with the similarity at the best cell.
            values = squared_distances(candidates.cells.transpose(2, 3)[:, :, None], vectors[:, :, :, None])
            cell = (-values).argmax(3)
        maps = self._similarity(values, chosen)
        similarity, weight, contribution = (
            table.gather(2, slot) for table in (candidates.similarity, candidates.weight, candidates.contribution)
        )
        found = Pieces(prototype, similarity, weight, contribution, cell)
        if present is None:
            return found, maps
        return found.where(present), torch.where(present[:, :, :, None], maps, 0.0)

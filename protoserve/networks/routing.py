"""The head without most of its work: only the children of the most probable nodes of every level are scored.

A leaf is at most as probable as every node above it. So when the best leaf found is more probable than each node whose
children were left out, no other leaf can beat it, and path and evidence are those of the full head: that is the
certificate. Where it does not hold, ask the full head.

Shapes: N pictures, D dimensions, C cells, P prototypes, L levels; at one level, B parents whose children are scored, M
children and Q prototypes of its largest group.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.errors import InputError
from protoserve.networks.distances import exact
from protoserve.networks.head import NEGATIVE, FusedHead, PrototypeHead
from protoserve.networks.similarity import similarity
from protoserve.taxonomy import ROOT, Taxonomy

# Probabilities of the two heads differ by rounding; within this (natural logarithm) nothing is certain.
MARGIN = 1e-4


class RoutedExplanation(NamedTuple):
    """The outputs of a routed graph, in their order.

    certain bool [N]: whether the certificate holds. path int64 [N, L] (−1 below the leaf); path_log_probability,
    path_logit float [N, L] (0 there); evidence_… as in `Explanation`. scored_node int64 and scored_log_probability
    float [N, K]: all nodes that were scored, −1 where there were fewer.
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
    scored_node: Tensor
    scored_log_probability: Tensor


class _Scored(NamedTuple):
    """One level: parent int64 [N, B]; similarity, cell [N, B, Q]; weight [N, B, M, Q]; slots int64 [N, B] and first
    prototypes [N, B] of the groups; node int64, logit, log_probability [N, B, M]."""

    parent: Tensor
    similarity: Tensor
    cell: Tensor
    weight: Tensor
    slots: Tensor
    first: Tensor
    node: Tensor
    logit: Tensor
    log_probability: Tensor


class RoutedHead(nn.Module):
    """`width` parents per level are expanded, each with the `top_k` evidence of the path.

    Raises InputError for a flat head, which has one group, and for a width below 1.
    """

    parent_first_child: Tensor
    parent_children: Tensor
    parent_first: Tensor
    parent_slots: Tensor
    parent_weight: Tensor
    parent_stride: Tensor
    parent_temperature: Tensor
    is_leaf: Tensor
    path_at_level: Tensor

    def __init__(self, head: PrototypeHead, top_k: int, width: int) -> None:
        super().__init__()
        if head.kind != "hierarchical":
            raise InputError("only a hierarchical head can be routed: in a flat one all leaves compete at once")
        if width < 1:
            raise InputError(f"a routed head expands at least 1 node of every level, not {width}")
        self.head = FusedHead(head, top_k, cells=1)
        self.top_k, self.width = top_k, width
        taxonomy = head.taxonomy
        self.nodes = len(taxonomy.nodes)
        level = np.array([len(node) for node in taxonomy.nodes], dtype=np.int64)
        tables = _parent_tables(head)
        children, slots = tables["parent_children"], tables["parent_slots"]
        # Parents of every level: the root, numbered last, then the inner nodes.
        self.sizes: list[tuple[int, int, int]] = []
        for depth in range(taxonomy.depth):
            parents = np.flatnonzero((level == depth) & (children[:-1] > 0)) if depth else np.array([self.nodes])
            wide = min(width, len(parents))
            self.sizes.append((wide, int(children[parents].max()), max(1, int(slots[parents].max()))))
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)
        # Only the temperatures are learnt; a parent whose child is certain has none.
        temperature = torch.ones(self.nodes + 1)
        parents_of_groups = [self.nodes if group.parent == ROOT else group.parent for group in taxonomy.groups]
        temperature[parents_of_groups] = head.temperature.detach().float().cpu()
        self.register_buffer("parent_temperature", temperature, persistent=False)
        self.register_buffer("is_leaf", torch.from_numpy(children[:-1] == 0), persistent=False)
        self.register_buffer("path_at_level", torch.from_numpy(taxonomy.path_at_level), persistent=False)

    def forward(self, latent: Tensor) -> RoutedExplanation:
        """The answer for `latent` [N, D, rows, columns]."""
        cells = latent.flatten(2).transpose(1, 2)
        if not self.head.unit:
            cells = cells - self.head.centre
        batch = latent.shape[0]
        parent = torch.full((1, 1), self.nodes, device=latent.device).expand(batch, -1)
        above = torch.zeros(1, 1, device=latent.device).expand(batch, -1)
        levels: list[_Scored] = []
        left_out = [torch.full((1, 1), NEGATIVE, device=latent.device).expand(batch, -1)]
        for depth, (_, members, slots) in enumerate(self.sizes):
            scored = self._score(cells, parent, above, members, slots)
            levels.append(scored)
            if depth + 1 == len(self.sizes):
                break
            # The most probable inner nodes go on; the best of the others bounds what is left out.
            node, found = scored.node.flatten(1), scored.log_probability.flatten(1)
            inner = torch.where(self._leads_on(node), found, NEGATIVE)
            wide = self.sizes[depth + 1][0]
            best, place = inner.topk(min(wide + 1, inner.shape[1]), dim=1)
            above, chosen = best[:, :wide], node.gather(1, place[:, :wide])
            # Fewer inner nodes than places: the root's group stands in, too improbable to matter.
            parent = torch.where(above > 0.5 * NEGATIVE, chosen, self.nodes)
            if best.shape[1] > wide:
                left_out.append(best[:, wide:])
        return self._answer(latent, cells, levels, torch.cat(left_out, dim=1).amax(1))

    def _leads_on(self, node: Tensor) -> Tensor:
        """bool [N, K] which nodes [N, K] have children; −1 has none."""
        inner = ~self.is_leaf.index_select(0, node.clamp_min(0).reshape(-1)).reshape(-1, node.shape[1])
        return inner & (node >= 0)

    def _score(self, cells: Tensor, parent: Tensor, above: Tensor, members: int, slots: int) -> _Scored:
        """Score the children of `parent` [N, B], whose log-probabilities are `above`."""
        head, device = self.head, cells.device
        wide, flat = parent.shape[1], parent.reshape(-1)

        def of_parent(table: Tensor) -> Tensor:
            return table.index_select(0, flat).reshape(-1, wide)

        first, count = of_parent(self.parent_first), of_parent(self.parent_slots)
        slot, member = torch.arange(slots, device=device), torch.arange(members, device=device)
        prototypes = (first[:, :, None] + slot).clamp_max(head.vectors.shape[0] - 1)
        vectors = head.vectors.index_select(0, prototypes.reshape(-1)).reshape(-1, wide * slots, cells.shape[2])
        half = 0.0 if head.unit else -0.5 * (cells * cells).sum(2)[:, None]
        cell = (torch.matmul(vectors, cells.transpose(1, 2)) + half).argmax(2)
        # So few prototypes are all looked at a second time.
        matched = cells.gather(1, cell[:, :, None].expand(-1, -1, cells.shape[2]))
        found = similarity(exact(matched, vectors), head.form, head.epsilon, head.shift)
        if head.form == "negative-distance":
            found = found + head.reference.index_select(0, prototypes.reshape(-1)).reshape(-1, wide * slots)
        present = slot < count[:, :, None]
        similarities = torch.where(present, found.reshape(-1, wide, slots), 0.0)

        stride = of_parent(self.parent_stride)[:, :, None, None]
        places = of_parent(self.parent_weight)[:, :, None, None] + member[:, None] * stride + slot
        weight = head.weights.gather(0, places.clamp_max(head.weights.shape[0] - 1).reshape(-1))
        weight = weight.reshape(-1, wide, members, slots)
        logit = torch.matmul(weight, similarities[:, :, :, None]).squeeze(3)
        exists = member < of_parent(self.parent_children)[:, :, None]
        temperature = of_parent(self.parent_temperature)[:, :, None]
        conditional = torch.log_softmax(torch.where(exists, logit, NEGATIVE) / temperature, dim=2)
        node = torch.where(exists, of_parent(self.parent_first_child)[:, :, None] + member, -1)
        # Where the root stands in for nobody, nothing was scored.
        real = exists & (above > 0.5 * NEGATIVE)[:, :, None]
        return _Scored(
            parent,
            similarities,
            cell.reshape(-1, wide, slots),
            weight,
            count,
            first,
            torch.where(real, node, -1),
            logit,
            torch.where(real, above[:, :, None] + conditional, NEGATIVE),
        )

    def _answer(self, latent: Tensor, cells: Tensor, levels: list[_Scored], bound: Tensor) -> RoutedExplanation:
        head, top_k, depth = self.head, self.top_k, len(levels)
        node = torch.cat([level.node.flatten(1) for level in levels], dim=1)
        found = torch.cat([level.log_probability.flatten(1) for level in levels], dim=1)
        leaf_here = (node >= 0) & ~self._leads_on(node)
        best, place = torch.where(leaf_here, found, NEGATIVE).max(1)
        path = self.path_at_level.index_select(0, node.gather(1, place[:, None])[:, 0])

        rows: list[tuple[Tensor, ...]] = []
        for number, level in enumerate(levels):
            rows.append(self._evidence(level, path[:, number]))
        prototype, found_similarity, weight, contribution, cell, log_probability, logit = (
            torch.stack(parts, dim=1) for parts in zip(*rows, strict=True)
        )
        chosen = prototype.clamp_min(0).flatten(1)
        vectors = head.vectors.index_select(0, chosen.reshape(-1)).reshape(-1, depth * top_k, 1, cells.shape[2])
        maps = similarity(exact(cells[:, None], vectors), head.form, head.epsilon, head.shift)
        if head.form == "negative-distance":
            maps = maps + head.reference.index_select(0, chosen.reshape(-1)).reshape(-1, depth * top_k, 1)
        maps = torch.where(prototype.reshape(-1, depth * top_k, 1) >= 0, maps, 0.0)
        return RoutedExplanation(
            certain=best > bound + MARGIN,
            path=path,
            path_log_probability=log_probability,
            path_logit=logit,
            evidence_prototype=prototype,
            evidence_similarity=found_similarity,
            evidence_weight=weight,
            evidence_contribution=contribution,
            evidence_cell=cell,
            evidence_map=maps.reshape(-1, depth, top_k, latent.shape[2], latent.shape[3]),
            scored_node=node,
            scored_log_probability=torch.where(node >= 0, found, 0.0),
        )

    def _evidence(self, level: _Scored, node: Tensor) -> tuple[Tensor, ...]:
        """The evidence [N, top_k] of the path's `node` [N] of one level, and its log-probability and logit [N]."""
        slots, members = level.similarity.shape[2], level.node.shape[2]
        # Where in the level the node is; a path that has ended has none, and is masked below.
        place = (level.node.flatten(1) == node[:, None]).int().argmax(1)[:, None]
        group = torch.div(place, members, rounding_mode="floor")
        alive = (node >= 0)[:, None]

        def of_group(values: Tensor) -> Tensor:
            return values.gather(1, group[:, :, None].expand(-1, -1, slots)).squeeze(1)

        similarities, cell = of_group(level.similarity), of_group(level.cell)
        rows = level.weight.flatten(1, 2)
        weight = rows.gather(1, place[:, :, None].expand(-1, -1, slots)).squeeze(1)
        slot = torch.arange(slots, device=node.device)
        present = (slot < level.slots.gather(1, group)) & alive
        contributions = torch.where(present, weight * similarities, NEGATIVE)
        kept = min(self.top_k, slots)
        contribution, chosen = contributions.topk(kept, dim=1)
        shown = contribution > 0.5 * NEGATIVE
        lacking = (0, self.top_k - kept)
        prototype = level.first.gather(1, group) + chosen
        pad = torch.nn.functional.pad
        return (
            pad(torch.where(shown, prototype, -1), lacking, value=-1),
            pad(torch.where(shown, similarities.gather(1, chosen), 0.0), lacking),
            pad(torch.where(shown, weight.gather(1, chosen), 0.0), lacking),
            pad(torch.where(shown, contribution, 0.0), lacking),
            pad(torch.where(shown, cell.gather(1, chosen), -1), lacking, value=-1),
            torch.where(alive, level.log_probability.flatten(1).gather(1, place), 0.0).squeeze(1),
            torch.where(alive, level.logit.flatten(1).gather(1, place), 0.0).squeeze(1),
        )


def _parent_tables(head: PrototypeHead) -> dict[str, NDArray[np.int64]]:
    """Per node, the root last: where its children, their prototypes and their last layer lie. An only child has neither
    prototypes nor weights; its logit is 0 and its conditional 1."""
    taxonomy: Taxonomy = head.taxonomy
    count = len(taxonomy.nodes) + 1
    tables: dict[str, NDArray[np.int64]] = {
        name: np.zeros(count, dtype=np.int64)
        for name in (
            "parent_first_child",
            "parent_children",
            "parent_first",
            "parent_slots",
            "parent_weight",
            "parent_stride",
        )
    }
    parents = np.where(taxonomy.parent == ROOT, count - 1, taxonomy.parent)
    numbers, first, children = np.unique(parents, return_index=True, return_counts=True)
    tables["parent_first_child"][numbers], tables["parent_children"][numbers] = first, children
    sizes = np.bincount(head.prototype_group.cpu().numpy(), minlength=len(taxonomy.groups))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    places = head.grouping.weight_places()
    for number, group in enumerate(taxonomy.groups):
        parent = count - 1 if group.parent == ROOT else group.parent
        tables["parent_first"][parent], tables["parent_slots"][parent] = starts[number], sizes[number]
        tables["parent_weight"][parent], tables["parent_stride"][parent] = places[number]
    return tables

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
from torch.nn import functional

from protoserve.errors import InputError
from protoserve.networks.distances import at_cells, exact
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
    """One level, R = N · B rows, one per picture and parent: similarity, cell [R, Q]; weight [R, M, Q]; slots and first
    prototypes int64 [R, 1] of the groups; node int64, log_probability [N, B · M], logit [R, M]. Where there is no node,
    its number is that of the root, which is nobody's child."""

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

    weights: Tensor
    parents: Tensor
    parent_temperature: Tensor
    not_inner: Tensor
    not_leaf: Tensor
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
        children, slots = tables["children"], tables["slots"]
        # Parents of every level: the root, numbered last, then the inner nodes.
        self.sizes: list[tuple[int, int, int]] = []
        for depth in range(taxonomy.depth):
            parents = np.flatnonzero((level == depth) & (children[:-1] > 0)) if depth else np.array([self.nodes])
            wide = min(width, len(parents))
            self.sizes.append((wide, int(children[parents].max()), max(1, int(slots[parents].max()))))
        self.slots = max(top_k, *(most for _, _, most in self.sizes))
        self.register_buffer("parents", torch.from_numpy(np.stack([*tables.values()], axis=1)), persistent=False)
        # So many may be read past the end: by the last row of the last group.
        members, strides = max(most for _, most, _ in self.sizes), int(tables["stride"].max())
        padded = functional.pad(self.head.weights, (0, members * strides + self.slots))
        self.register_buffer("weights", padded, persistent=False)
        # Only the temperatures are learnt; a parent whose child is certain has none.
        temperature = torch.ones(self.nodes + 1)
        parents_of_groups = [self.nodes if group.parent == ROOT else group.parent for group in taxonomy.groups]
        temperature[parents_of_groups] = head.temperature.detach().float().cpu()
        self.register_buffer("parent_temperature", temperature, persistent=False)
        # Added to log-probabilities, they leave only inner nodes or only leaves in question; the root is neither.
        leaf = torch.from_numpy(children == 0)
        apart = torch.full((self.nodes + 1,), NEGATIVE)
        apart[:-1] = torch.where(leaf[:-1], NEGATIVE, 0.0)
        self.register_buffer("not_inner", apart, persistent=False)
        self.register_buffer("not_leaf", torch.where(leaf, 0.0, NEGATIVE), persistent=False)
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
            inner = scored.log_probability + self._of_nodes(self.not_inner, scored.node)
            wide = self.sizes[depth + 1][0]
            best, place = inner.topk(min(wide + 1, inner.shape[1]), dim=1)
            above, chosen = best[:, :wide], scored.node.gather(1, place[:, :wide])
            # Fewer inner nodes than places: the root's group stands in, too improbable to matter.
            parent = torch.where(above > 0.5 * NEGATIVE, chosen, self.nodes)
            if best.shape[1] > wide:
                left_out.append(best[:, wide:])
        return self._answer(latent, cells, levels, torch.cat(left_out, dim=1).amax(1))

    def _of_nodes(self, table: Tensor, node: Tensor) -> Tensor:
        """The rows of a table over nodes for `node` [N, K]."""
        return table.index_select(0, node.reshape(-1)).reshape(-1, node.shape[1])

    def _score(self, cells: Tensor, parent: Tensor, above: Tensor, members: int, slots: int) -> _Scored:
        """Score the children of `parent` [N, B], whose log-probabilities are `above`."""
        head, device = self.head, cells.device
        wide, flat = parent.shape[1], parent.reshape(-1)
        table = self.parents.index_select(0, flat)
        first_child, children, first, count, place, stride = (table[:, column : column + 1] for column in range(6))
        slot, member = torch.arange(slots, device=device), torch.arange(members, device=device)
        prototypes = (first + slot).clamp_max(head.vectors.shape[0] - 1).reshape(-1)
        vectors = head.vectors.index_select(0, prototypes).reshape(-1, wide * slots, cells.shape[2])
        half = 0.0 if head.unit else -0.5 * (cells * cells).sum(2)[:, None]
        cell = (torch.matmul(vectors, cells.transpose(1, 2)) + half).argmax(2)
        # So few prototypes are all looked at a second time.
        found = similarity(exact(at_cells(cells, cell), vectors), head.form, head.epsilon, head.shift)
        if head.form == "negative-distance":
            found = found + head.reference.index_select(0, prototypes).reshape(-1, wide * slots)
        similarities = torch.where(slot < count, found.reshape(-1, slots), 0.0)

        # The weights are padded, so that reading beyond a group's own needs no care.
        places = (place + member * stride)[:, :, None] + slot
        weight = self.weights.gather(0, places.reshape(-1)).reshape(-1, members, slots)
        logit = torch.matmul(weight, similarities[:, :, None]).squeeze(2)
        exists = member < children
        temperature = self.parent_temperature.index_select(0, flat)[:, None]
        conditional = torch.log_softmax(torch.where(exists, logit, NEGATIVE) / temperature, dim=1)
        # Where the root stands in for nobody, nothing was scored.
        own = above.reshape(-1, 1)
        real = exists & (own > 0.5 * NEGATIVE)
        return _Scored(
            similarities,
            cell.reshape(-1, slots),
            weight,
            count,
            first,
            torch.where(real, first_child + member, self.nodes).reshape(-1, wide * members),
            logit,
            torch.where(real, own + conditional, NEGATIVE).reshape(-1, wide * members),
        )

    def _answer(self, latent: Tensor, cells: Tensor, levels: list[_Scored], bound: Tensor) -> RoutedExplanation:
        head, top_k, depth = self.head, self.top_k, len(levels)
        node = torch.cat([level.node for level in levels], dim=1)
        found = torch.cat([level.log_probability for level in levels], dim=1)
        best, place = (found + self._of_nodes(self.not_leaf, node)).max(1)
        path = self.path_at_level.index_select(0, node.gather(1, place[:, None])[:, 0])

        # One row of similarities and last-layer weights per picture and level, as long as the longest.
        rows = [self._row(level, path[:, number]) for number, level in enumerate(levels)]
        similarities, weights, cells_of, first, count, log_probability, logit = (
            torch.stack(parts, dim=1) for parts in zip(*rows, strict=True)
        )
        slots = torch.arange(self.slots, device=latent.device)
        contributions = torch.where(slots < count, weights * similarities, NEGATIVE)
        contribution, slot = contributions.topk(top_k, dim=2)
        shown = slot < count
        prototype = torch.where(shown, first + slot, -1)
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
            evidence_similarity=torch.where(shown, similarities.gather(2, slot), 0.0),
            evidence_weight=torch.where(shown, weights.gather(2, slot), 0.0),
            evidence_contribution=torch.where(shown, contribution, 0.0),
            evidence_cell=torch.where(shown, cells_of.gather(2, slot), -1),
            evidence_map=maps.reshape(-1, depth, top_k, latent.shape[2], latent.shape[3]),
            scored_node=torch.where(node < self.nodes, node, -1),
            scored_log_probability=torch.where(node < self.nodes, found, 0.0),
        )

    def _row(self, level: _Scored, node: Tensor) -> tuple[Tensor, ...]:
        """Of one level's `node` [N], −1 where the path has ended: similarities, weights and cells [N, slots], the first
        prototype and how many there are [N, 1] (0 after the end), log-probability and logit [N] (0 there)."""
        slots, members = level.similarity.shape[1], level.logit.shape[1]
        # Where in the level the node is, then which row that is among those of all pictures.
        place = (level.node == node[:, None]).int().argmax(1)
        place = place + level.node.shape[1] * torch.arange(node.shape[0], device=node.device)
        group = torch.div(place, members, rounding_mode="floor")
        lacking = (0, self.slots - slots)
        alive = node >= 0
        return (
            functional.pad(level.similarity.index_select(0, group), lacking),
            functional.pad(level.weight.flatten(0, 1).index_select(0, place), lacking),
            functional.pad(level.cell.index_select(0, group), lacking),
            level.first.index_select(0, group),
            torch.where(alive[:, None], level.slots.index_select(0, group), 0),
            torch.where(alive, level.log_probability.flatten().index_select(0, place), 0.0),
            torch.where(alive, level.logit.flatten().index_select(0, place), 0.0),
        )


def _parent_tables(head: PrototypeHead) -> dict[str, NDArray[np.int64]]:
    """Per node, the root last: where its children, their prototypes and their last layer lie. An only child has neither
    prototypes nor weights; its logit is 0 and its conditional 1."""
    taxonomy: Taxonomy = head.taxonomy
    count = len(taxonomy.nodes) + 1
    tables: dict[str, NDArray[np.int64]] = {
        name: np.zeros(count, dtype=np.int64)
        for name in (
            "first_child",
            "children",
            "first",
            "slots",
            "weight",
            "stride",
        )
    }
    parents = np.where(taxonomy.parent == ROOT, count - 1, taxonomy.parent)
    numbers, first, children = np.unique(parents, return_index=True, return_counts=True)
    tables["first_child"][numbers], tables["children"][numbers] = first, children
    sizes = np.bincount(head.prototype_group.cpu().numpy(), minlength=len(taxonomy.groups))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    places = head.grouping.weight_places()
    for number, group in enumerate(taxonomy.groups):
        parent = count - 1 if group.parent == ROOT else group.parent
        tables["first"][parent], tables["slots"][parent] = starts[number], sizes[number]
        tables["weight"][parent], tables["stride"][parent] = places[number]
    return tables

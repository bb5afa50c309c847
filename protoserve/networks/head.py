"""The prototype head: distances, similarities, conditionals of all parents and path sums, without a loop over nodes.

One module for everything: training runs it eagerly, and export traces the same `forward` and `explain` into the
fused graph (ONNX, TorchScript), so that there is one formula. Shapes: N pictures, D dimensions, C = rows × columns
cells, P prototypes, G groups of competing nodes, M members of the largest group, Q prototypes of the largest
group, V nodes of the taxonomy, L levels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from protoserve.networks.distances import (
    at_prototypes,
    best_cells,
    closeness,
    exact,
    looked_up_again,
    most_looks,
    near,
    nearest_cells,
    squares,
)
from protoserve.networks.grouping import NEGATIVE, Grouping, Kind, groups_of, taken
from protoserve.networks.similarity import Similarity, on_sphere, similarity, similarity_at
from protoserve.taxonomy import Taxonomy

__all__ = [
    "NEGATIVE",
    "Explanation",
    "FusedHead",
    "HeadOutput",
    "Kind",
    "PrototypeHead",
    "groups_of",
    "prototype_children",
]


class HeadOutput(NamedTuple):
    """distance, similarity [N, P] at each prototype's best cell; cell int64 [N, P]; group_logits [N, G, M] (−1e30
    where a group has fewer members); conditional and log_probability [N, V], natural logarithms."""

    distance: Tensor
    similarity: Tensor
    cell: Tensor
    group_logits: Tensor
    conditional: Tensor
    log_probability: Tensor


class Explanation(NamedTuple):
    """The outputs of the exported graph, in their order; see `FusedHead`."""

    log_probability: Tensor
    logit: Tensor
    path: Tensor
    evidence_prototype: Tensor
    evidence_similarity: Tensor
    evidence_weight: Tensor
    evidence_contribution: Tensor
    evidence_cell: Tensor
    evidence_map: Tensor
    similarity: Tensor
    cell: Tensor


class PrototypeHead(nn.Module):
    """Prototypes and last layers over a taxonomy.

    With the similarity `negative-distance`, `reference` [P] is added to it: 0 unless `speak_where_near` was called.
    With `zero`, what the similarity is at this squared distance is subtracted from it, so that a prototype farther than
    that speaks against its child. As published the logarithms are positive everywhere, so a child gains from every
    prototype that it has, whether that matches or not. Two random directions stand 2 apart.
    With `sphere`, which the similarity `cosine` implies, latent cells must come at unit length, as
    `PrototypeNetwork.latent` gives them.

    `prototypes` [P, D] are ordered by group and, within it, by child; `prototype_child` [P] is the node that each
    belongs to. `weight` [G, M, Q] is every group's bias-free last layer, padded; a prototype reaches only members
    of its own group. It starts at +1 own, −0.5 other (both papers).
    """

    weight_mask: Tensor
    own_mask: Tensor
    temperature: Tensor
    centre: Tensor
    reference: Tensor
    _leaves_below: Tensor | None

    def __init__(
        self,
        taxonomy: Taxonomy,
        prototype_child: list[int],
        dimensions: int,
        *,
        kind: Kind = "hierarchical",
        form: Similarity = "log1p",
        epsilon: float = 1e-4,
        sphere: bool = False,
        zero: float | None = None,
    ) -> None:
        super().__init__()
        self.zero = zero
        self.shift = 0.0 if zero is None else -similarity_at(zero, form, epsilon)
        self.sphere = sphere or form == "cosine"
        self.taxonomy = taxonomy
        self.kind = kind
        self.form: Similarity = form
        self.epsilon = epsilon
        self.depth = taxonomy.depth
        self.grouping = Grouping(taxonomy, prototype_child, kind)
        nodes, count = len(taxonomy.nodes), len(prototype_child)
        member = self.member_node[:, :, None]
        slot_child = functional.pad(self.prototype_child, (0, 1), value=-1)[self.slot_prototype][:, None, :]
        valid = (member < nodes) & (slot_child >= 0)
        self.register_buffer("weight_mask", valid, persistent=False)
        self.register_buffer("own_mask", valid & (member == slot_child), persistent=False)
        self.register_buffer("_leaves_below", None, persistent=False)
        groups, members, slots = valid.shape
        self.register_buffer("temperature", torch.ones(groups))
        self.register_buffer("centre", torch.zeros(dimensions))
        if form == "negative-distance":
            self.register_buffer("reference", torch.zeros(count))
        self.prototypes = nn.Parameter(torch.rand(count, dimensions))
        self.weight = nn.Parameter(torch.zeros(groups, members, slots))
        self.reset_weight()

    # ---- the tables that training reads, see Grouping ----------------------------------------------------------

    @property
    def prototype_child(self) -> Tensor:
        """int64 [P] the node that each prototype belongs to."""
        return self.grouping.prototype_child

    @property
    def prototype_group(self) -> Tensor:
        """int64 [P] the group of each prototype."""
        return self.grouping.prototype_group

    @property
    def prototype_slot(self) -> Tensor:
        """int64 [P] the place of each prototype in its group."""
        return self.grouping.prototype_slot

    @property
    def slot_prototype(self) -> Tensor:
        """int64 [G, Q] the prototype in each slot of a group, P in its padding."""
        return self.grouping.slot_prototype

    @property
    def member_node(self) -> Tensor:
        """int64 [G, M] the members of each group, V in its padding."""
        return self.grouping.member_node

    @property
    def node_member(self) -> Tensor:
        """int64 [V + 1] the place of each node in its group."""
        return self.grouping.node_member

    @property
    def node_group(self) -> Tensor:
        """int64 [V + 1] the group of each node, G where it has none."""
        return self.grouping.node_group

    @property
    def leaf_node(self) -> Tensor:
        """int64 [leaves] the leaves' nodes."""
        return self.grouping.leaf_node

    @property
    def leaves_below(self) -> Tensor:
        """[V, leaves] 1 where the leaf is the node or lies below it. Made when first asked for: it is large where there
        are many leaves, and no graph needs it."""
        if self._leaves_below is None:
            self._leaves_below = torch.from_numpy(self.taxonomy.leaves_below).to(self.weight)
        return self._leaves_below

    @property
    def top_k_limit(self) -> int:
        """The most evidence per level that a graph can return: the prototypes of the largest group."""
        return self.weight.shape[2]

    @torch.no_grad()
    def reset_weight(self, own: float = 1.0, other: float = -0.5) -> None:
        """Set the last layers to their published start.

        Where siblings have different numbers of prototypes, each prototype counts in inverse proportion, or the
        child with more of them would start ahead; not so where one that does not match adds nothing (`zero`).
        """
        if self.zero is not None:
            self.weight.copy_(torch.where(self.own_mask, own, other) * self.weight_mask)
            return
        owned = self.own_mask.sum(2).float()  # [G, M]
        fewest = torch.where(owned > 0, owned, torch.inf).amin(1)
        share = (self.own_mask * (fewest[:, None] / owned.clamp_min(1.0))[:, :, None]).sum(1)  # [G, Q]
        self.weight.copy_(torch.where(self.own_mask, own, other) * self.weight_mask * share[:, None, :])

    @torch.no_grad()
    def speak_where_near(self, typical: Tensor) -> None:
        """Give a last layer over sums of distances the form that people read, without changing a probability.

        A sum of −distances is evidence by absence: the prototypes of *other* classes add most to a logit, because the
        picture is far from them. Two freedoms turn that round. The mean over a group's members may be taken from every
        prototype's weights, for a softmax does not see it; and to every similarity a constant may be added, as long as
        the weights of every member times these `reference`s sum to 0. Of all such references those nearest to the
        `typical` distances [P] are taken, so that a prototype nearer than that speaks for its own class. With fewer
        prototypes than members there may be none but 0.
        """
        members = (self.member_node < len(self.taxonomy.nodes)).double()[:, :, None]
        centred = self.effective_weight().double()
        centred = (centred - (centred * members).sum(1, keepdim=True) / members.sum(1, keepdim=True)) * self.weight_mask
        reference = torch.zeros_like(self.reference, dtype=torch.float64)
        for group in range(centred.shape[0]):
            present = self.slot_prototype[group] < len(reference)
            weight, slots = centred[group][:, present], self.slot_prototype[group][present]
            wanted = typical.to(weight)[slots]
            reference[slots] = wanted - torch.linalg.pinv(weight, rtol=1e-9) @ (weight @ wanted)
        self.weight.copy_(centred)
        self.reference.copy_(reference)

    def effective_weight(self) -> Tensor:
        """[G, M, Q] the last layers, exactly zero where a group has no such member or prototype."""
        return self.weight * self.weight_mask

    # ---- distances -------------------------------------------------------------------------------------------

    def vectors(self) -> Tensor:
        """[P, D] the prototypes as cells are compared with them: at unit length on the sphere, else as they are."""
        return on_sphere(self.prototypes, 1) if self.sphere else self.prototypes

    def shifted_vectors(self) -> Tensor:
        """[P, D] the prototypes as the product takes them. Distances do not change when both sides are shifted, and
        smaller numbers lose less to cancellation; at unit length they are small already."""
        return self.vectors() if self.sphere else self.vectors() - self.centre

    def shifted_cells(self, latent: Tensor) -> Tensor:
        """[N, C, D] cells of `latent` [N, D, rows, columns], shifted as the prototypes are."""
        cells = latent.flatten(2).transpose(1, 2)
        return cells if self.sphere else cells - self.centre

    def nearest_cells(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """distance [N, P] and cell int64 [N, P] of each prototype's best cell in `latent` [N, D, rows, columns].

        While training, distances are those of the matrix product alone: gradients then cost two more products.
        """
        cells, vectors = self.shifted_cells(latent), self.shifted_vectors()
        if self.training:
            closest, cell = closeness(cells, vectors, self.sphere).max(1)
            return (squares(vectors, self.sphere) - 2.0 * closest).clamp_min(0.0), cell
        return nearest_cells(
            cells, vectors, squares(vectors, self.sphere), self.sphere, near(self.form, self.epsilon, vectors)
        )

    def similarity_of(self, distance: Tensor) -> Tensor:
        """The similarities of squared distances of any shape, before any prototype's own `reference`."""
        return similarity(distance, self.form, self.epsilon, self.shift)

    # ---- probabilities ---------------------------------------------------------------------------------------

    def node_log_probability(self, group_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional log-probabilities [N, V] from `group_logits` [N, G, M]; an only child's
        conditional is 1."""
        return self._node_log_probability(self.grouping.logits_of_groups(group_logits))

    def _node_log_probability(self, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
        conditional = self.grouping.rows_of(self.grouping.conditionals(logits, self.temperature))
        return self.grouping.node_values(conditional), self.grouping.log_probability(conditional)

    def forward(self, latent: Tensor) -> HeadOutput:
        """Everything training needs from `latent` [N, D, rows, columns]."""
        distance, cell = self.nearest_cells(latent)
        return self.classify(distance, cell)

    def classify(self, distance: Tensor, cell: Tensor) -> HeadOutput:
        """The rest of `forward`, from distances and cells [N, P]."""
        similarities = self.similarity_of(distance)
        if self.form == "negative-distance":
            similarities = similarities + self.reference
        logits = self.grouping.logits(similarities, self.grouping.weights(self.effective_weight()))
        conditional, log_probability = self._node_log_probability(logits)
        group_logits = self.grouping.group_logits(logits)
        return HeadOutput(distance, similarities, cell, group_logits, conditional, log_probability)

    def explain(self, latent: Tensor, top_k: int) -> Explanation:
        """What the exported graph answers for `latent` [N, D, rows, columns]; see `FusedHead`."""
        explanation: Explanation = FusedHead(self, top_k)(latent)
        return explanation


class FusedHead(nn.Module):
    """The head as graphs hold it: a frozen copy of its parameters, in the form that is computed with.

    For `latent` [N, D, rows, columns] the `top_k` evidence of every level. With `cells` (rows × columns), the graph
    looks a second time at as many small distances as a picture of so many cells can have; without, which no graph can,
    at as many as there are.
    """

    vectors: Tensor
    squares: Tensor
    weights: Tensor
    temperature: Tensor
    centre: Tensor
    reference: Tensor

    def __init__(self, head: PrototypeHead, top_k: int, cells: int | None = None) -> None:
        super().__init__()
        self.grouping = head.grouping
        self.form, self.epsilon, self.shift = head.form, head.epsilon, head.shift
        self.unit, self.top_k = head.sphere, top_k
        self.slots = head.top_k_limit
        self.always = head.grouping.always(top_k)
        with torch.no_grad():
            vectors = head.shifted_vectors().clone()
            self.register_buffer("vectors", vectors)
            self.register_buffer("squares", squares(vectors, head.sphere))
            # So many slots may be read past the start of any row.
            flat = head.grouping.flat_weights(head.effective_weight())
            self.register_buffer("weights", functional.pad(flat, (0, self.slots)))
            self.register_buffer("temperature", head.temperature.clone())
            if not head.sphere:
                self.register_buffer("centre", head.centre.clone())
            if head.form == "negative-distance":
                self.register_buffer("reference", head.reference.clone())
            self.radius = near(self.form, self.epsilon, vectors)
            self.looks = None if cells is None else most_looks(vectors, self.radius, cells)

    def forward(self, latent: Tensor) -> Explanation:
        """log_probability, logit float [N, V] (logit 0 where a node has no head); path int64 [N, L] (−1 below the
        leaf); evidence_prototype, evidence_cell int64 and evidence_similarity, _weight, _contribution float
        [N, L, top_k] by falling contribution (−1 and 0 where there is none); evidence_map [N, L, top_k, rows,
        columns], the similarity at every cell; similarity, cell [N, P].
        """
        grouping = self.grouping
        cells = latent.flatten(2).transpose(1, 2)
        if not self.unit:
            cells = cells - self.centre
        product = closeness(cells, self.vectors, self.unit)
        distance, cell = best_cells(product, self.squares)
        distance = looked_up_again(cells, self.vectors, distance, cell, self.radius, self.looks)
        similarities = similarity(distance, self.form, self.epsilon, self.shift)
        if self.form == "negative-distance":
            similarities = similarities + self.reference
        logits = grouping.logits(similarities, grouping.split_weights(self.weights[: -self.slots]))
        logit = grouping.node_values(grouping.rows_of(logits))
        conditional = grouping.rows_of(grouping.conditionals(logits, self.temperature))
        log_probability = grouping.log_probability(conditional)
        leaf = taken(log_probability, grouping.leaf_node).argmax(1)

        # One row of last-layer weights and of similarities per picture and level.
        levels = grouping.leaf_path.shape[1]
        first, count = (table.index_select(0, leaf)[:, :, None] for table in (grouping.leaf_first, grouping.leaf_count))
        slots = torch.arange(self.slots, device=latent.device)
        places = grouping.leaf_weight.index_select(0, leaf)[:, :, None] + slots
        weight = self.weights.gather(0, places.reshape(-1)).reshape(-1, levels, self.slots)
        prototypes = (first + slots).clamp_max(self.vectors.shape[0] - 1)
        found_similarities = similarities.gather(1, prototypes.flatten(1)).reshape(-1, levels, self.slots)
        contributions = torch.where(slots < count, weight * found_similarities, NEGATIVE)
        contribution, slot = contributions.topk(self.top_k, dim=2)
        # Where every group has enough prototypes, nothing is lacking.
        found = None if self.always else slot < count
        prototype = first + slot
        chosen = (prototype if found is None else torch.where(found, prototype, 0)).flatten(1)

        if self.radius == 0.0:
            apart = at_prototypes(product, self.squares, chosen)
        else:
            # From differences, so that they are exact near a prototype and agree with the similarity at the best cell.
            vectors = self.vectors.index_select(0, chosen.reshape(-1))
            apart = exact(cells[:, None], vectors.reshape(-1, levels * self.top_k, 1, self.vectors.shape[1]))
        maps = similarity(apart, self.form, self.epsilon, self.shift)
        if self.form == "negative-distance":
            maps = maps + self.reference.index_select(0, chosen.reshape(-1)).reshape(-1, levels * self.top_k, 1)
        evidence_similarity, evidence_weight = found_similarities.gather(2, slot), weight.gather(2, slot)
        evidence_cell = cell.gather(1, chosen).reshape(-1, levels, self.top_k)
        if found is not None:
            prototype, evidence_cell = torch.where(found, prototype, -1), torch.where(found, evidence_cell, -1)
            evidence_similarity = torch.where(found, evidence_similarity, 0.0)
            evidence_weight = torch.where(found, evidence_weight, 0.0)
            contribution = torch.where(found, contribution, 0.0)
            maps = torch.where(found.reshape(-1, levels * self.top_k, 1), maps, 0.0)
        return Explanation(
            log_probability=log_probability,
            logit=logit,
            path=grouping.leaf_path.index_select(0, leaf),
            evidence_prototype=prototype,
            evidence_similarity=evidence_similarity,
            evidence_weight=evidence_weight,
            evidence_contribution=contribution,
            evidence_cell=evidence_cell,
            evidence_map=maps.reshape(-1, levels, self.top_k, latent.shape[2], latent.shape[3]),
            similarity=similarities,
            cell=cell,
        )


def prototype_children(taxonomy: Taxonomy, kind: Kind, per_child: int, inner_factor: int = 1) -> list[int]:
    """The node that each prototype belongs to, in the head's order: `per_child` for every member of every group.

    An inner node stands for more varied pictures than a leaf: it gets ⌈√leaves below⌉ times as many, at most
    `inner_factor` times (1: as published).
    """
    below = taxonomy.leaf_counts
    return [
        node
        for group in groups_of(taxonomy, kind)
        for node in group.children
        for _ in range(per_child * min(inner_factor, math.ceil(math.sqrt(below[node]))))
    ]

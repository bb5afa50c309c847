"""The prototype head: distances, similarities, conditionals of all parents and path sums, without a loop over nodes.

Training runs this module; `protoserve.networks.fused_head` holds the same computation in the form that is exported.
Shapes: N pictures, D dimensions, C = rows × columns cells, P prototypes, G groups of competing nodes, M members of the
largest group, Q prototypes of the largest group, V nodes of the taxonomy, L levels.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from protoserve.errors import InputError
from protoserve.networks.distances import cell_products, distance_offsets, nearest_cells, refinement_radius
from protoserve.networks.grouping import Grouping
from protoserve.networks.similarity import Similarity, to_unit_length
from protoserve.taxonomy import Kind, Taxonomy, competing_groups

# The similarity of Hase et al. 2019.
PUBLISHED: Final = Similarity("log1p", epsilon=1e-4)


class HeadOutput(NamedTuple):
    """distance, similarity [N, P] at each prototype's best cell; cell int64 [N, P]; group_logits [N, G, M] (−1e30
    where a group has fewer members); conditional and log_probability [N, V], natural logarithms."""

    distance: Tensor
    similarity: Tensor
    cell: Tensor
    group_logits: Tensor
    conditional: Tensor
    log_probability: Tensor


class PrototypeHead(nn.Module):
    """Prototypes and last layers over a taxonomy.

    With `unit_length`, which the similarity `cosine` implies, latent cells must come at unit length, as
    `PrototypeNetwork.latent` gives them. `reference` [P] is added to the similarity `negative-distance`; it is 0 until
    `recentre_distances` sets it, and None for other similarities.

    `prototypes` [P, D] are ordered by group and, within it, by child; `prototype_child` [P] is the node that each
    belongs to. `weight` [G, M, Q] is every group's bias-free last layer, padded; a prototype reaches only members
    of its own group. It starts at +1 own, −0.5 other (both papers).
    """

    weight_mask: Tensor
    own_mask: Tensor
    temperature: Tensor
    centre: Tensor
    reference: Tensor | None
    _leaves_below: Tensor | None

    def __init__(
        self,
        taxonomy: Taxonomy,
        prototype_child: list[int],
        dimensions: int,
        *,
        kind: Kind = "hierarchical",
        similarity: Similarity = PUBLISHED,
        unit_length: bool = False,
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.unit_length = unit_length or similarity.needs_unit_length
        self.taxonomy = taxonomy
        self.kind = kind
        self.depth = taxonomy.depth
        self.grouping = Grouping(taxonomy, prototype_child, kind)
        nodes, count = len(taxonomy.nodes), len(prototype_child)
        member = self.grouping.member_node[:, :, None]
        child_or_none = functional.pad(self.grouping.prototype_child, (0, 1), value=-1)
        slot_child = child_or_none[self.grouping.slot_prototype][:, None, :]
        valid = (member < nodes) & (slot_child >= 0)
        self.register_buffer("weight_mask", valid, persistent=False)
        self.register_buffer("own_mask", valid & (member == slot_child), persistent=False)
        self.register_buffer("_leaves_below", None, persistent=False)
        groups, members, slots = valid.shape
        self.register_buffer("temperature", torch.ones(groups))
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("reference", torch.zeros(count) if similarity.has_reference else None)
        self.prototypes = nn.Parameter(torch.rand(count, dimensions))
        self.weight = nn.Parameter(torch.zeros(groups, members, slots))
        self.reset_weight()

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
        if self.similarity.zero is not None:
            self.weight.copy_(torch.where(self.own_mask, own, other) * self.weight_mask)
            return
        owned = self.own_mask.sum(2).float()  # [G, M]
        fewest = torch.where(owned > 0, owned, torch.inf).amin(1)
        share = (self.own_mask * (fewest[:, None] / owned.clamp_min(1.0))[:, :, None]).sum(1)  # [G, Q]
        self.weight.copy_(torch.where(self.own_mask, own, other) * self.weight_mask * share[:, None, :])

    @torch.no_grad()
    def recentre_distances(self, typical: Tensor) -> None:
        """Rewrite a last layer over sums of distances in a form that people can read; no probability changes.

        A sum of −distances is evidence by absence: the prototypes of *other* classes add most to a logit, because the
        picture is far from them. Two freedoms reverse that. A softmax ignores a constant over its members, so the mean
        over a group's members can be subtracted from every prototype's weights. And a constant, its `reference`, can be
        added to every prototype's similarity, as long as the weights of every member times these references sum to 0.
        Of all such references the nearest to the `typical` squared distances [P] are used, so that a prototype nearer
        than its typical distance adds to its own class. With fewer prototypes than members, 0 may be the only choice.

        Raises InputError for a similarity without references.
        """
        if self.reference is None:
            raise InputError(f"the similarity {self.similarity.form} has no reference distances; use negative-distance")
        members = (self.grouping.member_node < len(self.taxonomy.nodes)).double()[:, :, None]
        centred = self.effective_weight().double()
        centred = (centred - (centred * members).sum(1, keepdim=True) / members.sum(1, keepdim=True)) * self.weight_mask
        reference = torch.zeros_like(self.reference, dtype=torch.float64)
        for group in range(centred.shape[0]):
            present = self.grouping.slot_prototype[group] < len(reference)
            weight, slots = centred[group][:, present], self.grouping.slot_prototype[group][present]
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
        return to_unit_length(self.prototypes, 1) if self.unit_length else self.prototypes

    def shifted_vectors(self) -> Tensor:
        """[P, D] the prototypes as the product takes them. Distances do not change when both sides are shifted, and
        smaller numbers lose less to cancellation; at unit length they are small already."""
        return self.vectors() if self.unit_length else self.vectors() - self.centre

    def shifted_cells(self, latent: Tensor) -> Tensor:
        """[N, C, D] cells of `latent` [N, D, rows, columns], shifted as the prototypes are."""
        cells = latent.flatten(2).transpose(1, 2)
        return cells if self.unit_length else cells - self.centre

    def nearest_cells(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """distance [N, P] and cell int64 [N, P] of each prototype's best cell in `latent` [N, D, rows, columns].

        While training, distances are those of the matrix product alone: gradients then cost two more products.
        """
        cells, vectors = self.shifted_cells(latent), self.shifted_vectors()
        if self.training:
            closest, cell = cell_products(cells, vectors, self.unit_length).max(1)
            return (distance_offsets(vectors, self.unit_length) - 2.0 * closest).clamp_min(0.0), cell
        return nearest_cells(
            cells,
            vectors,
            distance_offsets(vectors, self.unit_length),
            self.unit_length,
            refinement_radius(self.similarity, vectors),
        )

    def similarity_of(self, distance: Tensor) -> Tensor:
        """The similarities of squared distances of any shape, before any prototype's own `reference`."""
        return self.similarity.of_distance(distance)

    # ---- probabilities ---------------------------------------------------------------------------------------

    def node_log_probability(self, group_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional log-probabilities [N, V] from `group_logits` [N, G, M]; an only child's
        conditional is 1."""
        return self._node_log_probability(self.grouping.logits_of_groups(group_logits))

    def _node_log_probability(self, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
        conditional = self.grouping.concatenate_members(self.grouping.conditionals(logits, self.temperature))
        return self.grouping.node_values(conditional), self.grouping.log_probability(conditional)

    def forward(self, latent: Tensor) -> HeadOutput:
        """Everything training needs from `latent` [N, D, rows, columns]."""
        distance, cell = self.nearest_cells(latent)
        return self.classify(distance, cell)

    def classify(self, distance: Tensor, cell: Tensor) -> HeadOutput:
        """The rest of `forward`, from distances and cells [N, P]."""
        similarities = self.similarity.of_distance(distance, self.reference)
        logits = self.grouping.logits(similarities, self.grouping.weights(self.effective_weight()))
        conditional, log_probability = self._node_log_probability(logits)
        group_logits = self.grouping.group_logits(logits)
        return HeadOutput(distance, similarities, cell, group_logits, conditional, log_probability)


def prototype_children(taxonomy: Taxonomy, kind: Kind, per_child: int, inner_factor: int = 1) -> list[int]:
    """The node that each prototype belongs to, in the head's order: `per_child` for every member of every group.

    An inner node stands for more varied pictures than a leaf: it gets ⌈√leaves below⌉ times as many, at most
    `inner_factor` times (1: as published).
    """
    below = taxonomy.leaf_counts
    return [
        node
        for group in competing_groups(taxonomy, kind)
        for node in group.children
        for _ in range(per_child * min(inner_factor, math.ceil(math.sqrt(below[node]))))
    ]

"""The prototype head: distances, similarities, logits and the probabilities of all nodes, without a loop over nodes.

Training runs this module; `protoserve.networks.fused_head` does the same computation in the form that is exported.
Shapes: N pictures, D dimensions, C = rows × columns cells, P prototypes, G groups of competing nodes, M members of the
largest group, Q prototypes of the largest group, V nodes of the taxonomy, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Collection
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
    """The head's outputs: `distance` and `similarity` [N, P] at each prototype's best cell; its index `cell` int64
    [N, P]; `group_logits` [N, G, M], −1e30 in a group's padding; `conditional` and `log_probability` [N, V], natural
    logarithms."""

    distance: Tensor
    similarity: Tensor
    cell: Tensor
    group_logits: Tensor
    conditional: Tensor
    log_probability: Tensor


class PrototypeHead(nn.Module):
    """Prototypes and last layers over a taxonomy.

    With `unit_length`, latent cells must have unit length, as `PrototypeNetwork.latent` gives them; the similarity
    `cosine` implies it. `reference` [P] is added to the similarity `negative-distance`. It is 0 until
    `recentre_distances` sets it, and None for other similarities.

    `prototypes` [P, D] are ordered by group and, within it, by child; `prototype_child` [P] is the node of each.
    `weight` [G, M, Q] is every group's bias-free last layer, padded; a prototype reaches only members of its own group.
    Weights start at +1 for a prototype's own child and −0.5 for the others (Chen et al. 2019, Hase et al. 2019).
    `usual` [P] is each prototype's usual similarity (see `centred_weight`). It is 0 until it is measured, once, at the
    end of training. `off` bool [P] marks the prototypes that `switch_off` has switched off; None without any.
    """

    weight_mask: Tensor
    own_mask: Tensor
    temperature: Tensor
    centre: Tensor
    reference: Tensor | None
    usual: Tensor
    off: Tensor | None
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
        self.register_buffer("usual", torch.zeros(count))
        self.register_buffer("off", None, persistent=False)
        self.prototypes = nn.Parameter(torch.rand(count, dimensions))
        self.weight = nn.Parameter(torch.zeros(groups, members, slots))
        self.reset_weight()

    @property
    def leaves_below(self) -> Tensor:
        """[V, leaves] 1 where the leaf is the node or lies below it.

        Computed on first use: it is large for many leaves, and no graph needs it.
        """
        if self._leaves_below is None:
            self._leaves_below = torch.from_numpy(self.taxonomy.leaves_below).to(self.weight)
        return self._leaves_below

    @property
    def top_k_limit(self) -> int:
        """The largest number of pieces of evidence per level: the number of prototypes of the largest group."""
        return self.weight.shape[2]

    @torch.no_grad()
    def reset_weight(self, own: float = 1.0, other: float = -0.5) -> None:
        """Set the last layers to their published start: `own` for a prototype's own child, `other` for the rest.

        If siblings have different numbers of prototypes, each weight is scaled in inverse proportion: otherwise the
        child with more prototypes would start ahead. With the similarity's `zero`, no weight is scaled, because a
        prototype that does not match adds nothing.
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
        picture is far from them. Two freedoms reverse that. First, a softmax ignores a constant over its members, so
        the mean over a group's members can be subtracted from every prototype's weights. Second, a constant `reference`
        can be added to every prototype's similarity, as long as every member's weights times these references sum to 0.
        Of all such references, those nearest to the `typical` squared distances [P] are used: a prototype that is
        nearer than its typical distance then adds to its own class. With fewer prototypes than members, 0 may be the
        only choice.

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
            target = typical.to(weight)[slots]
            reference[slots] = target - torch.linalg.pinv(weight, rtol=1e-9) @ (weight @ target)
        self.weight.copy_(centred)
        self.reference.copy_(reference)

    def switch_off(self, prototypes: Collection[int]) -> None:
        """Let exactly these prototypes count as usual, whatever the picture shows.

        Their contributions are then 0. Weights and priors stay, so switching on again restores every number.
        """
        off = torch.zeros(len(self.prototypes), dtype=torch.bool, device=self.usual.device)
        off[list(prototypes)] = True
        self.off = off if prototypes else None

    def counted(self, similarity: Tensor) -> Tensor:
        """Return the similarities [N, P] as they count: the usual one where a prototype is off."""
        return similarity if self.off is None else torch.where(self.off, self.usual, similarity)

    def effective_weight(self) -> Tensor:
        """Return the last layers [G, M, Q] with exact zeros in a group's padding."""
        return self.weight * self.weight_mask

    def centred_weight(self) -> Tensor:
        """Return the last layers [G, M, Q] less each prototype's mean weight over the members of its group.

        A softmax does not see what is added to all its members, so no probability changes, but a prototype that counts
        for all members alike counts for none. With the similarity less its `usual` value, every logit is
        prior + Σ centred weight × (similarity − usual), exactly.
        """
        weight = self.effective_weight().double()
        members = (self.grouping.member_node < len(self.taxonomy.nodes)).sum(1)[:, None, None]
        return ((weight - weight.sum(1, keepdim=True) / members) * self.weight_mask).to(self.weight)

    def centred_own_weight(self) -> Tensor:
        """Return each prototype's centred weight for its own child [P]."""
        grouping = self.grouping
        member = grouping.node_member[grouping.prototype_child]
        return self.centred_weight()[grouping.prototype_group, member, grouping.prototype_slot].detach()

    def prior(self) -> Tensor:
        """Return every node's logit [V] where all similarities are usual; 0 for a node that competes with no other."""
        slots = functional.pad(self.usual, (0, 1))[self.grouping.slot_prototype]  # [G, Q]
        table = (self.centred_weight().double() * slots.double()[:, None, :]).sum(2)  # [G, M]
        table = functional.pad(table, (0, 0, 0, 1)).to(self.weight)
        return table[self.grouping.node_group[:-1], self.grouping.node_member[:-1]]

    # ---- distances -------------------------------------------------------------------------------------------

    def vectors(self) -> Tensor:
        """Return the prototypes [P, D] that cells are compared with: at unit length where the head needs it."""
        return to_unit_length(self.prototypes, 1) if self.unit_length else self.prototypes

    def shifted_vectors(self) -> Tensor:
        """Return the prototypes [P, D] as the product takes them: shifted by the centre, unless at unit length.

        A shift of both sides changes no distance, and smaller numbers lose less to cancellation.
        """
        return self.vectors() if self.unit_length else self.vectors() - self.centre

    def shifted_cells(self, latent: Tensor) -> Tensor:
        """Return the cells [N, C, D] of `latent` [N, D, rows, columns], shifted like the prototypes."""
        cells = latent.flatten(2).transpose(1, 2)
        return cells if self.unit_length else cells - self.centre

    def nearest_cells(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Find each prototype's best cell in `latent` [N, D, rows, columns]: its distance and index [N, P].

        In training mode, distances are those of the matrix product alone: gradients then cost two more products.
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
        """Compute the similarities of squared distances of any shape, without the prototypes' `reference`."""
        return self.similarity.of_distance(distance)

    # ---- probabilities ---------------------------------------------------------------------------------------

    def node_log_probability(self, group_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute conditional and unconditional log-probabilities [N, V] from `group_logits` [N, G, M]; an only child's
        conditional probability is 1."""
        return self._node_log_probability(self.grouping.logits_of_groups(group_logits))

    def _node_log_probability(self, logits: list[Tensor]) -> tuple[Tensor, Tensor]:
        conditional = self.grouping.concatenate_members(self.grouping.conditionals(logits, self.temperature))
        return self.grouping.node_values(conditional), self.grouping.log_probability(conditional)

    def forward(self, latent: Tensor) -> HeadOutput:
        """Compute all outputs from `latent` [N, D, rows, columns]."""
        distance, cell = self.nearest_cells(latent)
        return self.classify(distance, cell)

    def classify(self, distance: Tensor, cell: Tensor) -> HeadOutput:
        """Compute all outputs from the distances [N, P] and indices int64 [N, P] of the best cells."""
        similarities = self.counted(self.similarity.of_distance(distance, self.reference))
        logits = self.grouping.logits(similarities, self.grouping.weights(self.effective_weight()))
        conditional, log_probability = self._node_log_probability(logits)
        group_logits = self.grouping.group_logits(logits)
        return HeadOutput(distance, similarities, cell, group_logits, conditional, log_probability)


def prototype_children(taxonomy: Taxonomy, kind: Kind, per_child: int, inner_factor: int = 1) -> list[int]:
    """Return each prototype's node in the head's order: `per_child` prototypes for every member of every group.

    An inner node covers more varied pictures than a leaf. It gets ⌈√leaves below⌉ times as many prototypes, at most
    `inner_factor` times (1: as published).
    """
    below = taxonomy.leaf_counts
    return [
        node
        for group in competing_groups(taxonomy, kind)
        for node in group.children
        for _ in range(per_child * min(inner_factor, math.ceil(math.sqrt(below[node]))))
    ]

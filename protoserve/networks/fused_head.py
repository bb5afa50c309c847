"""The prototype head in the form that is exported: from the latent map to the predicted path and its evidence.

Shapes: N pictures, D dimensions, C = rows × columns cells, P prototypes, V nodes of the taxonomy, L levels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from protoserve.graph_signature import Explanation
from protoserve.networks.distances import (
    best_cells,
    cell_products,
    distance_offsets,
    distances_to_prototypes,
    max_refinements,
    refine_distances,
    refinement_radius,
    squared_distances,
)
from protoserve.networks.grouping import MASKED_LOGIT, gather_columns
from protoserve.networks.head import PrototypeHead
from protoserve.networks.pieces import Pieces, ranking


class _Row(NamedTuple):
    """Of each picture's path, with Q slots for the prototypes of the level's group: `similarity` and `cell` [N, P],
    `weight` and `contribution` [N, L, Q], and the group's `first` prototype and their number, `slots` [N, L, 1]."""

    similarity: Tensor
    cell: Tensor
    weight: Tensor
    contribution: Tensor
    first: Tensor
    slots: Tensor


class FusedHead(nn.Module):
    """The head as graphs contain it: a frozen copy of its parameters, in the form that the computation needs.

    Maps `latent` [N, D, rows, columns] to the outputs, with the `top_k` pieces of evidence at every level. With `cells`
    (rows × columns), as graphs need it, it refines a fixed number of distances: the largest number that a picture of
    `cells` cells can need. Without, it counts them in each batch.
    """

    vectors: Tensor
    offsets: Tensor
    weights: Tensor
    temperature: Tensor
    centre: Tensor
    reference: Tensor | None
    usual: Tensor
    off: Tensor | None

    def __init__(self, head: PrototypeHead, top_k: int, cells: int | None = None) -> None:
        super().__init__()
        self.grouping = head.grouping
        self.similarity = head.similarity
        self.unit_length, self.top_k = head.unit_length, top_k
        self.slots = head.top_k_limit
        self.full_evidence = head.grouping.has_full_evidence(top_k)
        with torch.no_grad():
            vectors = head.shifted_vectors().clone()
            self.register_buffer("vectors", vectors)
            self.register_buffer("offsets", distance_offsets(vectors, head.unit_length))
            # A read of `slots` weights from the start of the last row must stay inside.
            flat = head.grouping.flat_weights(head.centred_weight())
            self.register_buffer("weights", functional.pad(flat, (0, self.slots)))
            self.register_buffer("temperature", head.temperature.clone())
            if not head.unit_length:
                self.register_buffer("centre", head.centre.clone())
            self.register_buffer("reference", None if head.reference is None else head.reference.clone())
            self.register_buffer("usual", head.usual.clone())
            self.register_buffer("off", None if head.off is None else head.off.clone())
            self.radius = refinement_radius(self.similarity, vectors)
            self.refinements = None if cells is None else max_refinements(vectors, self.radius, cells)

    def forward(self, latent: Tensor) -> Explanation[Tensor, Tensor]:
        """Compute the outputs for `latent` float [N, D, rows, columns]."""
        grouping = self.grouping
        cells = latent.flatten(2).transpose(1, 2)
        if not self.unit_length:
            cells = cells - self.centre
        product = cell_products(cells, self.vectors, self.unit_length)
        distance, cell = best_cells(product, self.offsets)
        distance = refine_distances(cells, self.vectors, distance, cell, self.radius, self.refinements)
        similarities = self.similarity.of_distance(distance, self.reference)
        if self.off is not None:
            similarities = torch.where(self.off, self.usual, similarities)
        logits = grouping.logits(similarities, grouping.split_weights(self.weights[: -self.slots]))
        logit = grouping.node_values(grouping.concatenate_members(logits))
        conditional = grouping.concatenate_members(grouping.conditionals(logits, self.temperature))
        log_probability = grouping.log_probability(conditional)
        leaf = gather_columns(log_probability, grouping.leaf_node).argmax(1)

        # Each picture and level has one row of last-layer weights and one of similarities.
        levels = grouping.leaf_path.shape[1]
        first, count = (table.index_select(0, leaf)[:, :, None] for table in (grouping.leaf_first, grouping.leaf_count))
        slots = torch.arange(self.slots, device=latent.device)
        weight_index = grouping.leaf_weight.index_select(0, leaf)[:, :, None] + slots
        weight = self.weights.gather(0, weight_index.reshape(-1)).reshape(-1, levels, self.slots)
        prototypes = (first + slots).clamp_max(self.vectors.shape[0] - 1)
        unusual = (similarities - self.usual).gather(1, prototypes.flatten(1)).reshape(-1, levels, self.slots)
        there = slots < count
        contributions = torch.where(there, weight * unusual, 0.0)
        row, order = _Row(similarities, cell, weight, contributions, first, count), ranking(contributions, unusual)
        supporting = self._pieces(row, torch.where(there, order, MASKED_LOGIT))
        against = self._pieces(row, torch.where(there, -order, MASKED_LOGIT))
        return Explanation(
            log_probability=log_probability,
            logit=logit,
            path=grouping.leaf_path.index_select(0, leaf),
            evidence_prototype=supporting.prototype,
            evidence_similarity=supporting.similarity,
            evidence_weight=supporting.weight,
            evidence_contribution=supporting.contribution,
            evidence_cell=supporting.cell,
            evidence_map=self._maps(cells, product, supporting.prototype).reshape(
                -1, levels, self.top_k, latent.shape[2], latent.shape[3]
            ),
            positive_contribution=contributions.relu().sum(2),
            against_prototype=against.prototype,
            against_similarity=against.similarity,
            against_weight=against.weight,
            against_contribution=against.contribution,
            against_cell=against.cell,
            similarity=similarities,
            cell=cell,
        )

    def _pieces(self, row: _Row, ranking: Tensor) -> Pieces:
        """Return the `top_k` prototypes that are greatest in `ranking` [N, L, slots]."""
        slot = ranking.topk(self.top_k, dim=2).indices
        prototype = row.first + slot
        # If every group has enough prototypes, all evidence is present and no mask is needed.
        present = None if self.full_evidence else slot < row.slots
        chosen = (prototype if present is None else torch.where(present, prototype, 0)).flatten(1)
        found = Pieces(
            prototype,
            row.similarity.gather(1, chosen).reshape(slot.shape),
            row.weight.gather(2, slot),
            row.contribution.gather(2, slot),
            row.cell.gather(1, chosen).reshape(slot.shape),
        )
        return found if present is None else found.where(present)

    def _maps(self, cells: Tensor, product: Tensor, prototype: Tensor) -> Tensor:
        """Return the similarities [N, L · top_k, C] of `prototype` int64 [N, L, top_k], 0 for −1, at every cell."""
        count = prototype.shape[1] * prototype.shape[2]
        chosen = (prototype if self.full_evidence else prototype.clamp_min(0)).flatten(1)
        reference = self.reference
        if reference is not None:
            reference = reference.index_select(0, chosen.reshape(-1)).reshape(-1, count, 1)
        if self.radius == 0.0:
            # Transposed last: LiteRT's converter moves a transposition behind what follows it, and then exchanges the
            # operands of differences and quotients.
            distance = distances_to_prototypes(product, self.offsets, chosen)
            maps = self.similarity.of_distance(
                distance, None if reference is None else reference.transpose(1, 2)
            ).transpose(1, 2)
        else:
            # Differences are exact near a prototype, and agree with the refined similarity at the best cell.
            vectors = self.vectors.index_select(0, chosen.reshape(-1))
            distance = squared_distances(cells[:, None], vectors.reshape(-1, count, 1, self.vectors.shape[1]))
            maps = self.similarity.of_distance(distance, reference)
        return maps if self.full_evidence else torch.where((prototype >= 0).reshape(-1, count, 1), maps, 0.0)


def explain(head: PrototypeHead, latent: Tensor, top_k: int) -> Explanation[Tensor, Tensor]:
    """Compute the exported graph's outputs for `latent` [N, D, rows, columns]; see `FusedHead`."""
    explanation: Explanation[Tensor, Tensor] = FusedHead(head, top_k)(latent)
    return explanation

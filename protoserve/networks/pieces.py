"""Pieces of evidence as tensors: what the heads return for prototypes that speak for a node, and against it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from protoserve.graph_signature import MISSING_RANK


class Pieces(NamedTuple):
    """The `prototype` numbers, int64, −1 where there is none; their `similarity`, `weight` and `contribution`, 0 there;
    and the best `cell`, int64, −1 there. All [N, levels, top_k]; see `protoserve.graph_signature.Explanation`."""

    prototype: Tensor
    similarity: Tensor
    weight: Tensor
    contribution: Tensor
    cell: Tensor

    def where(self, present: Tensor) -> Pieces:
        """Blank the pieces that are not `present`, bool [N, levels, top_k]."""
        return Pieces(
            torch.where(present, self.prototype, -1),
            torch.where(present, self.similarity, 0.0),
            torch.where(present, self.weight, 0.0),
            torch.where(present, self.contribution, 0.0),
            torch.where(present, self.cell, -1),
        )


class RoutedCandidates(NamedTuple):
    """What a routed head chooses evidence from: `cells` [N, 1, D, C]; with one slot for each of the group's prototypes,
    `similarity`, `weight` and `contribution` [N, levels, slots]; and the group's `first` prototype [N, levels, 1]."""

    cells: Tensor
    similarity: Tensor
    weight: Tensor
    contribution: Tensor
    first: Tensor


def ranking(contribution: Tensor, unusual: Tensor) -> Tensor:
    """Return the values by which evidence for a node is ordered, the greatest first; negated, those against it.

    `unusual` is the similarity less its usual value. A prototype that the picture resembles more than usual has a
    place. One that it resembles less is missing: its best cell shows nothing. So what is missing counts `MISSING_RANK`
    of its contribution in the order, and all of it in the sum.
    """
    return torch.where(unusual > 0, contribution, MISSING_RANK * contribution)


def concatenate(tables: list[Tensor]) -> Tensor:
    """Concatenate along the second dimension; a single table adds no node to a graph."""
    return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)

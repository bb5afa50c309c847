"""The nearest cell of each prototype and its distance: one matrix product, refined where its rounding matters.

‖z − p‖² = ‖z‖² − 2zp + ‖p‖² is one product for all prototypes and cells, but loses so much to cancellation that the
similarity of an exact match would be wrong by 0.1 and more. That matters only where the distance is about as small as
the error, so there, and only there, the distance is computed again from the difference.

Shapes: N pictures, C cells, P prototypes, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protoserve.networks.similarity import Similarity

# Half of the greatest error that is allowed of a similarity; the other half is left to the formula itself.
TOLERANCE = 5e-4
# The unit roundoff of float32.
ROUNDOFF = 2.0**-24
# Prototypes that are compared with each other at a time.
BLOCK = 1024
# Directions of greatest variance in which neighbours are looked for first.
PRINCIPAL = 16


def append_half_squares(cells: Tensor) -> Tensor:
    """[N, C, D + 1]: cells [N, C, D] and, last, −‖z‖²/2. A one at the end of a prototype adds it to the product."""
    return torch.cat([cells, -0.5 * (cells * cells).sum(2, keepdim=True)], dim=2)


def cell_products(cells: Tensor, vectors: Tensor, unit_length: bool) -> Tensor:
    """[N, C, P] zp − ‖z‖²/2, or zp alone where all are of `unit_length`.

    Cells [N, C, D] and `vectors` [P, D]. The prototypes are the last dimension: runtimes keep that factor of the
    product packed, and find the best cell of many prototypes at a time.
    """
    if unit_length:
        return torch.matmul(cells, vectors.t())
    return torch.matmul(
        append_half_squares(cells), torch.cat([vectors, vectors.new_ones(vectors.shape[0], 1)], dim=1).t()
    )


def distance_offsets(vectors: Tensor, unit_length: bool) -> Tensor:
    """The term that makes −2 · `cell_products` a distance: [P] ‖p‖² of `vectors` [P, D]; at unit length [1] 2, which is
    ‖z‖² + ‖p‖²."""
    return vectors.new_full((1,), 2.0) if unit_length else (vectors * vectors).sum(1)


def squared_distances(cells: Tensor, vectors: Tensor) -> Tensor:
    """Squared distances along the last dimension, from the difference."""
    difference = cells - vectors
    return (difference * difference).sum(-1)


def gather_cells(cells: Tensor, chosen: Tensor) -> Tensor:
    """[N, K, D] the `chosen` int64 [N, K] of each picture's cells [N, C, D].

    It selects rows of all pictures' cells: along the second dimension, runtimes would gather number by number.
    """
    first = cells.shape[1] * torch.arange(cells.shape[0], device=cells.device)[:, None]
    rows = cells.flatten(0, 1).index_select(0, (chosen + first).reshape(-1))
    return rows.reshape(-1, chosen.shape[1], cells.shape[2])


def product_error(vectors: Tensor) -> float:
    """The largest error of a distance from the product, near a prototype of `vectors` [P, D].

    A sum of D products of float32 is off by about √D roundings of its largest term, here ‖p‖²; tests compare with
    float64.
    """
    return (8.0 + 2.0 * math.sqrt(vectors.shape[1])) * ROUNDOFF * float(vectors.detach().square().sum(1).max())


def refinement_radius(similarity: Similarity, vectors: Tensor) -> float:
    """The squared distance up to which distances from the product are too inexact for this similarity: 0 where they
    never are, infinite where they always are; for the prototypes `vectors` [P, D].

    No logarithmic similarity falls faster than 1/(d + ε), the cosine by 1/2 and −d by 1.
    """
    error = product_error(vectors)
    if similarity.is_logarithmic:
        return max(0.0, error / TOLERANCE - similarity.epsilon)
    return 0.0 if error <= TOLERANCE else math.inf


def max_refinements(vectors: Tensor, radius: float, cells: int) -> int:
    """The largest number of prototypes of `vectors` [P, D] within the squared distance `radius` of their best cell, for
    any picture of so many cells.

    Two prototypes within r of the same cell are within 4r of each other (squared). So the prototypes near one cell are
    no more than the neighbours of any one of them, itself included. A picture has no more than the `cells` largest of
    these counts together: one per cell where all prototypes lie apart.
    """
    count = len(vectors)
    if radius <= 0.0:
        return 0
    if not math.isfinite(radius):
        return count
    # The product's own error, so that no neighbour is missed.
    limit = 4.0 * radius + product_error(vectors)
    crowded = torch.arange(count)
    if vectors.shape[1] > 2 * PRINCIPAL:
        # No two are nearer to each other than their projections, which cost a fraction; most have no neighbour there.
        axes = torch.linalg.eigh(torch.cov(vectors.t())).eigenvectors[:, -PRINCIPAL:]
        crowded = _with_neighbours(vectors @ axes, limit)
    neighbours = torch.ones(count, dtype=torch.int64)
    for rows in torch.split(crowded, BLOCK):
        neighbours[rows] = torch.count_nonzero(_negative_half_distances(vectors[rows], vectors) >= -0.5 * limit, dim=1)
    return min(count, int(neighbours.topk(min(cells, count)).values.sum()))


def _negative_half_distances(rows: Tensor, vectors: Tensor) -> Tensor:
    """[rows, P] −‖a − b‖²/2 of `rows` [rows, D] and `vectors` [P, D], as one product."""
    one = rows.new_ones(len(rows), 1)
    left = torch.cat([rows, one, -0.5 * rows.square().sum(1, keepdim=True)], dim=1)
    right = torch.cat([vectors, -0.5 * vectors.square().sum(1, keepdim=True), vectors.new_ones(len(vectors), 1)], dim=1)
    return left @ right.t()


def _with_neighbours(vectors: Tensor, limit: float) -> Tensor:
    """int64: which of `vectors` [P, D] have another one within the squared distance `limit`."""
    found = []
    for start in range(0, len(vectors), BLOCK):
        rows = vectors[start : start + BLOCK]
        nearest = rows.new_full((len(rows),), -math.inf)
        # Blocks on both sides stay in the cache.
        for first in range(0, len(vectors), BLOCK):
            table = _negative_half_distances(rows, vectors[first : first + BLOCK])
            if first == start:
                table.fill_diagonal_(-math.inf)
            nearest = torch.maximum(nearest, table.amax(1))
        found.append(start + torch.nonzero(nearest >= -0.5 * limit)[:, 0])
    return torch.cat(found)


def nearest_cells(
    cells: Tensor, vectors: Tensor, offset: Tensor, unit_length: bool, radius: float, refinements: int | None = None
) -> tuple[Tensor, Tensor]:
    """distance [N, P] and cell int64 [N, P] of every prototype's best cell.

    Cells [N, C, D]; `vectors` [P, D] and their `distance_offsets`. Distances up to `radius` (see `refinement_radius`)
    are computed again from the difference. A graph can't count them: it refines the `refinements` smallest of every
    picture (see `max_refinements`).
    """
    distance, cell = best_cells(cell_products(cells, vectors, unit_length), offset)
    return refine_distances(cells, vectors, distance, cell, radius, refinements), cell


def best_cells(product: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """distance [N, P], as the `product` [N, C, P] of `cell_products` has it, and cell int64 [N, P] of every prototype's
    best cell; `offset` are the `distance_offsets`."""
    # The largest instead of the smallest, and its value by its place: edge runtimes lack ReduceMin and ArgMin, and one
    # pass over the product is saved.
    cell = product.argmax(1, keepdim=True)
    return (offset - 2.0 * product.gather(1, cell).squeeze(1)).clamp_min(0.0), cell.squeeze(1)


def refine_distances(
    cells: Tensor, vectors: Tensor, distance: Tensor, cell: Tensor, radius: float, refinements: int | None
) -> Tensor:
    """The distances [N, P] of best cells, with those up to `radius` computed from the difference; see
    `nearest_cells`."""
    if refinements is None:
        refinements = int((distance < radius).sum(1).max()) if radius > 0 else 0
    if refinements == 0:
        return distance
    if refinements == vectors.shape[0]:
        return squared_distances(gather_cells(cells, cell), vectors)
    chosen = distance.topk(refinements, dim=1, largest=False, sorted=False).indices
    refined = vectors.index_select(0, chosen.reshape(-1)).reshape(-1, refinements, vectors.shape[1])
    return distance.scatter(1, chosen, squared_distances(gather_cells(cells, cell.gather(1, chosen)), refined))


def distances_to_prototypes(product: Tensor, offset: Tensor, chosen: Tensor) -> Tensor:
    """[N, K, C] the distances of all cells to the prototypes `chosen` int64 [N, K], every picture's own, as the
    `product` [N, C, P] of `cell_products` has them."""
    found = product.gather(2, chosen[:, None, :].expand(-1, product.shape[1], -1)).transpose(1, 2)
    if offset.shape[0] > 1:
        offset = offset.index_select(0, chosen.reshape(-1)).reshape(-1, chosen.shape[1], 1)
    return (offset - 2.0 * found).clamp_min(0.0)

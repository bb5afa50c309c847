"""The nearest cell of each prototype and its distance: one matrix product, refined where its rounding matters.

‖z − p‖² = ‖z‖² − 2zp + ‖p‖² takes one product for all prototypes and cells. Cancellation costs it so many digits that
the similarity of an exact match would be wrong by 0.1 or more. The error matters only for distances that are about as
small as the error itself; only these are recomputed, from the difference.

Shapes: N pictures, C cells, P prototypes, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protoserve.networks.similarity import Similarity

# Half of the greatest error allowed in a similarity; the formula itself may take the other half.
TOLERANCE = 5e-4
# The unit roundoff of float32.
ROUNDOFF = 2.0**-24
# The number of prototypes that are compared with each other at a time.
BLOCK = 1024
# The number of directions of greatest variance in which neighbours are searched first.
PRINCIPAL = 16


def append_half_squares(cells: Tensor) -> Tensor:
    """Append −‖z‖²/2 to each of the cells [N, C, D]; returns [N, C, D + 1].

    A 1 at the end of a prototype then adds that term to the product.
    """
    return torch.cat([cells, -0.5 * (cells * cells).sum(2, keepdim=True)], dim=2)


def cell_products(cells: Tensor, vectors: Tensor, unit_length: bool) -> Tensor:
    """Compute zp − ‖z‖²/2 of `cells` [N, C, D] and `vectors` [P, D], or zp where all have `unit_length`.

    Returns [N, C, P]. The prototypes are the last dimension: runtimes keep that factor of the product packed, and
    search the best cell of many prototypes at a time.
    """
    if unit_length:
        return torch.matmul(cells, vectors.t())
    return torch.matmul(
        append_half_squares(cells), torch.cat([vectors, vectors.new_ones(vectors.shape[0], 1)], dim=1).t()
    )


def distance_offsets(vectors: Tensor, unit_length: bool) -> Tensor:
    """Return the term that turns −2 · `cell_products` into a distance: ‖p‖² [P] of `vectors` [P, D]; at unit length
    ‖z‖² + ‖p‖² = 2, as [1]."""
    return vectors.new_full((1,), 2.0) if unit_length else (vectors * vectors).sum(1)


def squared_distances(cells: Tensor, vectors: Tensor) -> Tensor:
    """Compute squared distances along the last dimension from the difference."""
    difference = cells - vectors
    return (difference * difference).sum(-1)


def gather_cells(cells: Tensor, chosen: Tensor) -> Tensor:
    """Take the `chosen` int64 [N, K] of each picture's cells [N, C, D]; returns [N, K, D].

    Selects rows of all pictures' cells at once: along the second dimension, runtimes would gather number by number.
    """
    first = cells.shape[1] * torch.arange(cells.shape[0], device=cells.device)[:, None]
    rows = cells.flatten(0, 1).index_select(0, (chosen + first).reshape(-1))
    return rows.reshape(-1, chosen.shape[1], cells.shape[2])


def product_error(vectors: Tensor) -> float:
    """Return the largest error of the product's distances near a prototype of `vectors` [P, D].

    The error of a sum of D float32 products is about √D roundings of its largest term, here ‖p‖². Tests compare the
    bound with float64.
    """
    return (8.0 + 2.0 * math.sqrt(vectors.shape[1])) * ROUNDOFF * float(vectors.detach().square().sum(1).max())


def refinement_radius(similarity: Similarity, vectors: Tensor) -> float:
    """Return the squared distance up to which the product's distances are too inexact for this similarity.

    It is 0 if they never are and infinite if they always are. `vectors` [P, D] are the prototypes. The bound follows
    from the greatest slopes: 1/(d + ε) of the logarithmic similarities, 1/2 of the cosine, 1 of −d.
    """
    error = product_error(vectors)
    if similarity.is_logarithmic:
        return max(0.0, error / TOLERANCE - similarity.epsilon)
    return 0.0 if error <= TOLERANCE else math.inf


def max_refinements(vectors: Tensor, radius: float, cells: int) -> int:
    """Bound the number of prototypes of `vectors` [P, D] within the squared distance `radius` of their best cell, for
    any picture of `cells` cells.

    Two prototypes within r of the same cell are within 4r of each other (squared). So a cell has at most as many near
    prototypes as any one of them has neighbours within 4r, counting itself. A picture has at most the sum of the
    `cells` largest of these counts: one per cell if all prototypes lie apart.
    """
    count = len(vectors)
    if radius <= 0.0:
        return 0
    if not math.isfinite(radius):
        return count
    # Adding the product's own error makes sure that no neighbour is missed.
    limit = 4.0 * radius + product_error(vectors)
    crowded = torch.arange(count)
    if vectors.shape[1] > 2 * PRINCIPAL:
        # Projections are never farther apart than the vectors and cost a fraction; most have no neighbour there.
        axes = torch.linalg.eigh(torch.cov(vectors.t())).eigenvectors[:, -PRINCIPAL:]
        crowded = _with_neighbours(vectors @ axes, limit)
    neighbours = torch.ones(count, dtype=torch.int64)
    for rows in torch.split(crowded, BLOCK):
        neighbours[rows] = torch.count_nonzero(_negative_half_distances(vectors[rows], vectors) >= -0.5 * limit, dim=1)
    return min(count, int(neighbours.topk(min(cells, count)).values.sum()))


def _negative_half_distances(rows: Tensor, vectors: Tensor) -> Tensor:
    """Compute −‖a − b‖²/2 [rows, P] of `rows` [rows, D] and `vectors` [P, D] as one product."""
    ones = rows.new_ones(len(rows), 1)
    left = torch.cat([rows, ones, -0.5 * rows.square().sum(1, keepdim=True)], dim=1)
    right = torch.cat([vectors, -0.5 * vectors.square().sum(1, keepdim=True), vectors.new_ones(len(vectors), 1)], dim=1)
    return left @ right.t()


def _with_neighbours(vectors: Tensor, limit: float) -> Tensor:
    """Return the int64 indices of those `vectors` [P, D] that have another one within the squared distance `limit`."""
    crowded = []
    for start in range(0, len(vectors), BLOCK):
        rows = vectors[start : start + BLOCK]
        nearest = rows.new_full((len(rows),), -math.inf)
        # Both factors are blocked so that they stay in the cache.
        for first in range(0, len(vectors), BLOCK):
            table = _negative_half_distances(rows, vectors[first : first + BLOCK])
            if first == start:
                table.fill_diagonal_(-math.inf)
            nearest = torch.maximum(nearest, table.amax(1))
        crowded.append(start + torch.nonzero(nearest >= -0.5 * limit)[:, 0])
    return torch.cat(crowded)


def nearest_cells(
    cells: Tensor, vectors: Tensor, offset: Tensor, unit_length: bool, radius: float, refinements: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find every prototype's best cell: its distance [N, P] and its index int64 [N, P].

    `cells` [N, C, D]; `vectors` [P, D] and, as `offset`, their `distance_offsets`. Distances up to `radius` (see
    `refinement_radius`) are recomputed from the difference. A graph cannot count them; it refines the `refinements`
    smallest distances of every picture instead (see `max_refinements`).
    """
    distance, cell = best_cells(cell_products(cells, vectors, unit_length), offset)
    return refine_distances(cells, vectors, distance, cell, radius, refinements), cell


def best_cells(product: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Find every prototype's best cell in the `product` [N, C, P] of `cell_products`: its distance [N, P], unrefined,
    and its index int64 [N, P]; `offset` are the `distance_offsets`."""
    # Edge runtimes lack ReduceMin and ArgMin, so it searches the largest product. Gathering its value by its index
    # saves one pass over the product.
    cell = product.argmax(1, keepdim=True)
    return (offset - 2.0 * product.gather(1, cell).squeeze(1)).clamp_min(0.0), cell.squeeze(1)


def refine_distances(
    cells: Tensor, vectors: Tensor, distance: Tensor, cell: Tensor, radius: float, refinements: int | None
) -> Tensor:
    """Recompute the best cells' distances [N, P] that are at most `radius`, from the difference; see
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
    """Take the distances [N, C, K] of all cells to each picture's `chosen` prototypes int64 [N, K] from the `product`
    [N, C, P] of `cell_products`."""
    products = product.gather(2, chosen[:, None, :].expand(-1, product.shape[1], -1))
    if offset.shape[0] > 1:
        offset = offset.index_select(0, chosen.reshape(-1)).reshape(-1, 1, chosen.shape[1])
    return (offset - 2.0 * products).clamp_min(0.0)

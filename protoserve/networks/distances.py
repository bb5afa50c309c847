"""Which cell is nearest to each prototype, and how far it is: one matrix product, and a second look where it errs.

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


def augmented(cells: Tensor) -> Tensor:
    """[N, C, D + 1]: cells [N, C, D] and, last, −‖z‖²/2, which a one at the end of a prototype adds to a product."""
    return torch.cat([cells, -0.5 * (cells * cells).sum(2, keepdim=True)], dim=2)


def closeness(cells: Tensor, vectors: Tensor, unit: bool) -> Tensor:
    """[N, C, P] zp − ‖z‖²/2, or zp alone where all are of `unit` length.

    Cells [N, C, D] and `vectors` [P, D]. The prototypes are the last dimension: runtimes keep that factor of the
    product packed, and find the best cell of many prototypes at a time.
    """
    if unit:
        return torch.matmul(cells, vectors.t())
    return torch.matmul(augmented(cells), torch.cat([vectors, vectors.new_ones(vectors.shape[0], 1)], dim=1).t())


def squares(vectors: Tensor, unit: bool) -> Tensor:
    """What a distance is more than −2 · `closeness`: [P] ‖p‖² of `vectors` [P, D]; at unit length [1] ‖z‖² + ‖p‖²."""
    return vectors.new_full((1,), 2.0) if unit else (vectors * vectors).sum(1)


def exact(cells: Tensor, vectors: Tensor) -> Tensor:
    """Squared distances along the last dimension, from the difference."""
    difference = cells - vectors
    return (difference * difference).sum(-1)


def at_cells(cells: Tensor, places: Tensor) -> Tensor:
    """[N, K, D] the cells [N, C, D] at `places` int64 [N, K], every picture's own.

    They are taken as rows of all pictures' cells: along the second dimension graphs would gather number by number.
    """
    first = cells.shape[1] * torch.arange(cells.shape[0], device=cells.device)[:, None]
    rows = cells.flatten(0, 1).index_select(0, (places + first).reshape(-1))
    return rows.reshape(-1, places.shape[1], cells.shape[2])


def product_error(vectors: Tensor) -> float:
    """How far a distance from the product is off at most, near a prototype of `vectors` [P, D].

    A sum of D products of float32 is off by about √D roundings of what is added up, and here that is ‖p‖²; tests
    compare with float64.
    """
    return (8.0 + 2.0 * math.sqrt(vectors.shape[1])) * ROUNDOFF * float(vectors.detach().square().sum(1).max())


def near(form: Similarity, epsilon: float, vectors: Tensor) -> float:
    """The squared distance up to which the product is not exact enough for a similarity of this form, 0 where it always
    is, infinite where it never is; for the prototypes `vectors` [P, D].

    No logarithmic similarity falls faster than 1/(d + ε), the cosine by 1/2 and −d by 1.
    """
    error = product_error(vectors)
    if form in ("cosine", "negative-distance"):
        return 0.0 if error <= TOLERANCE else math.inf
    return max(0.0, error / TOLERANCE - epsilon)


def most_looks(vectors: Tensor, radius: float, cells: int) -> int:
    """How many prototypes of `vectors` [P, D] a picture of so many cells can have within the squared distance `radius`
    of its best cell, at most.

    Prototypes within r of the same cell are within 4r of each other (squared). So a cell is near to no more of them
    than any one of those has such neighbours, itself included, and a picture to no more than the `cells` largest of
    these counts taken together: one per cell where all prototypes lie apart.
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
        crowded = _crowded(vectors @ axes, limit)
    neighbours = torch.ones(count, dtype=torch.int64)
    for rows in torch.split(crowded, BLOCK):
        neighbours[rows] = torch.count_nonzero(_closer(vectors[rows], vectors) >= -0.5 * limit, dim=1)
    return min(count, int(neighbours.topk(min(cells, count)).values.sum()))


def _closer(rows: Tensor, vectors: Tensor) -> Tensor:
    """[rows, P] −‖a − b‖²/2 of `rows` [rows, D] and `vectors` [P, D], as one product."""
    one = rows.new_ones(len(rows), 1)
    left = torch.cat([rows, one, -0.5 * rows.square().sum(1, keepdim=True)], dim=1)
    right = torch.cat([vectors, -0.5 * vectors.square().sum(1, keepdim=True), vectors.new_ones(len(vectors), 1)], dim=1)
    return left @ right.t()


def _crowded(vectors: Tensor, limit: float) -> Tensor:
    """int64: which of `vectors` [P, D] have another one within the squared distance `limit`."""
    found = []
    for start in range(0, len(vectors), BLOCK):
        rows = vectors[start : start + BLOCK]
        nearest = rows.new_full((len(rows),), -math.inf)
        # Blocks on both sides stay in the cache.
        for first in range(0, len(vectors), BLOCK):
            table = _closer(rows, vectors[first : first + BLOCK])
            if first == start:
                table.fill_diagonal_(-math.inf)
            nearest = torch.maximum(nearest, table.amax(1))
        found.append(start + torch.nonzero(nearest >= -0.5 * limit)[:, 0])
    return torch.cat(found)


def nearest_cells(
    cells: Tensor, vectors: Tensor, offset: Tensor, unit: bool, radius: float, looks: int | None = None
) -> tuple[Tensor, Tensor]:
    """distance [N, P] and cell int64 [N, P] of every prototype's best cell.

    Cells [N, C, D]; `vectors` [P, D] and their `squares`. Distances up to `radius` (see `near`) are computed again from
    the difference. A graph, which can't count them, does so for the `looks` smallest of every picture (see
    `most_looks`).
    """
    distance, cell = best_cells(closeness(cells, vectors, unit), offset)
    return looked_up_again(cells, vectors, distance, cell, radius, looks), cell


def best_cells(product: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """distance [N, P], as the `product` [N, C, P] of `closeness` has it, and cell int64 [N, P] of every prototype's
    best cell; `offset` are the `squares`."""
    # The largest instead of the smallest, and its value by its place: edge runtimes lack ReduceMin and ArgMin, and one
    # pass over the product is saved.
    cell = product.argmax(1, keepdim=True)
    return (offset - 2.0 * product.gather(1, cell).squeeze(1)).clamp_min(0.0), cell.squeeze(1)


def looked_up_again(
    cells: Tensor, vectors: Tensor, distance: Tensor, cell: Tensor, radius: float, looks: int | None
) -> Tensor:
    """The distances [N, P] of best cells, those up to `radius` from the difference; see `nearest_cells`."""
    if looks is None:
        looks = int((distance < radius).sum(1).max()) if radius > 0 else 0
    if looks == 0:
        return distance
    if looks == vectors.shape[0]:
        return exact(at_cells(cells, cell), vectors)
    chosen = distance.topk(looks, dim=1, largest=False, sorted=False).indices
    looked_up = vectors.index_select(0, chosen.reshape(-1)).reshape(-1, looks, vectors.shape[1])
    return distance.scatter(1, chosen, exact(at_cells(cells, cell.gather(1, chosen)), looked_up))


def at_prototypes(product: Tensor, offset: Tensor, chosen: Tensor) -> Tensor:
    """[N, K, C] the distances of all cells to the prototypes `chosen` int64 [N, K], every picture's own, as the
    `product` [N, C, P] of `closeness` has them."""
    found = product.gather(2, chosen[:, None, :].expand(-1, product.shape[1], -1)).transpose(1, 2)
    if offset.shape[0] > 1:
        offset = offset.index_select(0, chosen.reshape(-1)).reshape(-1, chosen.shape[1], 1)
    return (offset - 2.0 * found).clamp_min(0.0)

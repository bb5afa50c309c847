"""Projection (“push”): each prototype becomes the nearest cell of a training image of its own class.

Chen et al. 2019, eq. 4. The search streams over the images and keeps one candidate per prototype, so its memory
does not grow with the data set. Neither the batches, nor their order, nor a division of the images among processes
changes the result: whatever could be nearest by a matrix product is compared by its distance as computed from the
difference, in double precision and in a fixed order of summation, and ties go to the image that comes first in the
data set, then to its first cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from protoserve.networks.head import PrototypeHead
from protoserve.taxonomy import Taxonomy
from training.processes import Processes

# Numbers in the largest array of a block (double precision, so 8 bytes each): bounds the memory whatever the batch.
BLOCK = 4_000_000
NO_IMAGE = torch.iinfo(torch.int64).max


class Projection(NamedTuple):
    """Per prototype: image int64 [P] (its number in the data set), cell int64 [P], squared distance before projection
    float64 [P], and the vector found float32 [P, D], all on the CPU.

    A prototype that has met no image of its own class yet has the image `NO_IMAGE` at an infinite distance.
    """

    image: Tensor
    cell: Tensor
    distance: Tensor
    vector: Tensor


@torch.inference_mode()
def search(head: PrototypeHead, latents: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Projection:
    """The nearest own-class cell of each prototype among the images given, which may be a part of the data set.

    `latents` gives batches of (numbers int64 [n], leaves int64 [n], latent maps float32 [n, D, rows, columns]),
    each image once, in any order. A prototype's own class is its child: every leaf below it counts. Several processes
    may search a part each; `merge` of their results is what one process finds.
    """
    device, (count, dimensions) = head.prototypes.device, head.prototypes.shape
    own = own_prototypes(head.taxonomy, head.grouping.prototype_child.cpu()).to(device)
    # One row more, for the padding of `own`.
    prototypes = functional.pad(head.vectors().double(), (0, 0, 0, 1))
    image = torch.full((count,), NO_IMAGE, dtype=torch.int64)
    cell = torch.zeros(count, dtype=torch.int64)
    distance = torch.full((count,), torch.inf, dtype=torch.float64)
    vector = torch.zeros(count, dimensions)
    for numbers, leaves, latent in latents:
        flat = latent.to(device).flatten(2)
        per_image = own.shape[1] * max(dimensions, flat.shape[2])
        for part in torch.split(torch.arange(len(numbers)), max(1, BLOCK // per_image)):
            cells = flat[part.to(device)].double()
            asked = own[leaves[part].to(device)]
            pairs = _near_pairs(prototypes, asked, cells, distance.to(device))
            owner, place, at, found = (values.cpu() for values in pairs)
            number = numbers[part][place]
            # The best pair of each prototype: smallest distance, then first image, then first cell.
            order = torch.from_numpy(np.lexsort((at, number, found, owner)))
            owner, place, at, found, number = (values[order] for values in (owner, place, at, found, number))
            first = torch.ones(len(owner), dtype=torch.bool)
            first[1:] = owner[1:] != owner[:-1]
            first &= (found < distance[owner]) | ((found == distance[owner]) & (number < image[owner]))
            owner, place, at = owner[first], place[first], at[first]
            distance[owner], image[owner], cell[owner] = found[first], number[first], at
            vector[owner] = flat[part[place].to(device), :, at.to(device)].float().cpu()
    return Projection(image, cell, distance, vector)


def merge(one: Projection, other: Projection) -> Projection:
    """The nearer of two results per prototype, over parts of a data set that share no image; a tie goes to the image
    that comes first. Commutative and associative, so parts may be merged in any order."""
    closer = (other.distance < one.distance) | ((other.distance == one.distance) & (other.image < one.image))
    return Projection(
        torch.where(closer, other.image, one.image),
        torch.where(closer, other.cell, one.cell),
        torch.where(closer, other.distance, one.distance),
        torch.where(closer[:, None], other.vector, one.vector),
    )


def nearest_of_all(processes: Processes, found: Projection) -> Projection:
    """The nearest of what each process found among its own images, as if one had searched all of them."""
    if processes.count == 1:
        return found
    gathered = [processes.gathered(values) for values in found]
    nearest = found
    for rank in range(processes.count):
        if rank != processes.rank:
            nearest = merge(nearest, Projection(*(parts[rank] for parts in gathered)))
    return nearest


def complete(head: PrototypeHead, projection: Projection) -> Projection:
    """The projection itself, once every prototype has found an image; else raises RuntimeError naming one."""
    lacking = (projection.image == NO_IMAGE).nonzero()[:, 0].tolist()
    if lacking:
        name = head.taxonomy.names[int(head.grouping.prototype_child[lacking[0]])]
        raise RuntimeError(f"prototype {lacking[0]} of {name!r} has no training image of its own class")
    return projection


def own_prototypes(taxonomy: Taxonomy, prototype_child: Tensor) -> Tensor:
    """int64 [leaves, K] the prototypes of the nodes on each leaf's path, padded with P; `prototype_child` [P]."""
    count = len(prototype_child)
    by_node: dict[int, list[int]] = {}
    for prototype, child in enumerate(prototype_child.tolist()):
        by_node.setdefault(child, []).append(prototype)
    rows = [
        [prototype for node in path if node >= 0 for prototype in by_node.get(node, [])]
        for path in taxonomy.path_at_level[list(taxonomy.leaves)].tolist()
    ]
    table = torch.full((len(rows), max(map(len, rows))), count, dtype=torch.int64)
    for leaf, row in enumerate(rows):
        table[leaf, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return table


def _near_pairs(
    prototypes: Tensor, asked: Tensor, cells: Tensor, best: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """prototype, place, cell int64 [pairs] and distance float64 [pairs] of all pairs that may be nearest.

    `prototypes` float64 [P + 1, D], `asked` [n, K] the prototypes to compare image n with (P: none), `cells` float64
    [n, D, cells], `best` float64 [P] the smallest distances so far. The product's own distances are only good
    enough to leave pairs out: what is left lies within their rounding error of the smallest, and is a handful.
    """
    dimensions, count = prototypes.shape[1], len(best)
    chosen = prototypes[asked]
    lengths, norms = cells.square().sum(1), prototypes.square().sum(1)
    rough = torch.baddbmm(lengths[:, None], chosen, cells, alpha=-2.0) + norms[asked][:, :, None]
    rough.masked_fill_((asked == count)[:, :, None], torch.inf)
    # The classical bound of a sum of D products, twice, for both sides of a comparison err.
    reach = lengths.max().sqrt() + norms.max().sqrt()
    slack = 2.0 * (dimensions + 8) * torch.finfo(torch.float64).eps * reach * reach
    smallest = rough.amin(2)
    limit = functional.pad(best, (0, 1), value=-torch.inf)
    limit = limit.scatter_reduce(0, asked.flatten(), smallest.flatten(), "amin") + slack
    place, slot = (smallest <= limit[asked]).nonzero(as_tuple=True)
    rows = asked[place, slot]
    row, cell = (rough[place, slot] <= limit[rows][:, None]).nonzero(as_tuple=True)
    prototype, place = rows[row], place[row]
    difference = cells[place, :, cell] - prototypes[prototype]
    return prototype, place, cell, _sum_of_squares(difference)


def _sum_of_squares(vectors: Tensor) -> Tensor:
    """[n] of [n, D], added in pairs: an order of its own, for a library's depends on shape, threads and device."""
    width = 1 << max(0, vectors.shape[1] - 1).bit_length()
    squares = functional.pad(vectors.square(), (0, width - vectors.shape[1]))
    while width > 1:
        width //= 2
        squares = squares[:, :width] + squares[:, width:]
    return squares[:, 0]

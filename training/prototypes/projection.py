"""Projection (“push”): each prototype becomes the nearest cell of the training images of its class (Chen et al. 2019).

The search streams over the images and keeps one candidate per prototype, so its memory does not grow with the data set.
The result does not depend on batches, their order, or the division of images among processes. A matrix product finds
the cells that could be nearest. Their distances are then computed from differences in double precision, with a fixed
order of summation. Ties go to the image with the lowest number in the data set, then to its first cell.
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

# Limits the elements of the largest array, 8 bytes each, and so the memory, independently of the batch size.
BLOCK = 4_000_000
NO_IMAGE = torch.iinfo(torch.int64).max


class Projection(NamedTuple):
    """The nearest cell of each prototype, on the CPU.

    `image` int64 [P]: the image's number in the data set. `cell` int64 [P]. `distance` float64 [P]: the squared
    distance from the prototype before projection. `vector` float32 [P, D]: the cell's latent vector. A prototype
    without an image of its class so far has the image `NO_IMAGE` at an infinite distance.
    """

    image: Tensor
    cell: Tensor
    distance: Tensor
    vector: Tensor


@torch.inference_mode()
def search(head: PrototypeHead, latents: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Projection:
    """The nearest cell of each prototype among these images of its class, which may be a part of the data set.

    `latents` yields batches of (numbers int64 [n], leaves int64 [n], latent maps float32 [n, D, rows, columns]), each
    image once, in any order. The class of a prototype is its child, with all nodes below it; an image that is labelled
    only down to an inner node is of the class of that node and of those above it. Several processes may
    each search a part; `merge` combines their results.
    """
    device, (count, dimensions) = head.prototypes.device, head.prototypes.shape
    own = own_prototypes(head.taxonomy, head.grouping.prototype_child.cpu()).to(device)
    # The additional row is for the padding of `own`.
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
            candidates = own[leaves[part].to(device)]
            pairs = _near_pairs(prototypes, candidates, cells, distance.to(device))
            prototype, index, near_cell, near = (values.cpu() for values in pairs)
            number = numbers[part][index]
            # The best pair of each prototype: smallest distance, then first image, then first cell.
            order = torch.from_numpy(np.lexsort((near_cell, number, near, prototype)))
            prototype, index, near_cell, near, number = (
                values[order] for values in (prototype, index, near_cell, near, number)
            )
            best = torch.ones(len(prototype), dtype=torch.bool)
            best[1:] = prototype[1:] != prototype[:-1]
            best &= (near < distance[prototype]) | ((near == distance[prototype]) & (number < image[prototype]))
            prototype, index, near_cell = prototype[best], index[best], near_cell[best]
            distance[prototype], image[prototype], cell[prototype] = near[best], number[best], near_cell
            vector[prototype] = flat[part[index].to(device), :, near_cell.to(device)].float().cpu()
    return Projection(image, cell, distance, vector)


def merge(first: Projection, second: Projection) -> Projection:
    """The nearer cell of each prototype from two searches over disjoint parts of a data set; a tie goes to the image
    with the lower number. Commutative and associative, so parts may be merged in any order."""
    closer = (second.distance < first.distance) | ((second.distance == first.distance) & (second.image < first.image))
    return Projection(
        torch.where(closer, second.image, first.image),
        torch.where(closer, second.cell, first.cell),
        torch.where(closer, second.distance, first.distance),
        torch.where(closer[:, None], second.vector, first.vector),
    )


def nearest_of_all(processes: Processes, own: Projection) -> Projection:
    """Merge the result of this process's search with those of all others, as if one process had searched all images."""
    if processes.count == 1:
        return own
    gathered = [processes.gathered(values) for values in own]
    nearest = own
    for rank in range(processes.count):
        if rank != processes.rank:
            nearest = merge(nearest, Projection(*(parts[rank] for parts in gathered)))
    return nearest


def complete(head: PrototypeHead, projection: Projection) -> Projection:
    """Return the projection; raise RuntimeError if a prototype has no image, with the prototype's number."""
    lacking = (projection.image == NO_IMAGE).nonzero()[:, 0].tolist()
    if lacking:
        name = head.taxonomy.names[int(head.grouping.prototype_child[lacking[0]])]
        raise RuntimeError(f"prototype {lacking[0]} of {name!r} has no training image of its own class")
    return projection


def own_prototypes(taxonomy: Taxonomy, prototype_child: Tensor) -> Tensor:
    """int64 [labels, K]: the prototypes of the nodes on each label's path, those of leaves first, padded with P;
    `prototype_child` int64 [P]."""
    count = len(prototype_child)
    by_node: dict[int, list[int]] = {}
    for prototype, child in enumerate(prototype_child.tolist()):
        by_node.setdefault(child, []).append(prototype)
    rows = [
        [prototype for node in path if node >= 0 for prototype in by_node.get(node, [])]
        for path in taxonomy.path_at_level[taxonomy.label_nodes].tolist()
    ]
    table = torch.full((len(rows), max(map(len, rows))), count, dtype=torch.int64)
    for label, row in enumerate(rows):
        table[label, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return table


def _near_pairs(
    prototypes: Tensor, candidates: Tensor, cells: Tensor, best: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prototype, image index and cell int64 [pairs], and distance float64 [pairs], of all pairs that may be nearest.

    `prototypes` float64 [P + 1, D]; `candidates` [n, K] the prototypes to compare with image n (P: none); `cells`
    float64 [n, D, cells]; `best` float64 [P] the smallest distances so far. A matrix product excludes most pairs. A few
    remain, whose distances lie within its rounding error of the smallest.
    """
    dimensions, count = prototypes.shape[1], len(best)
    chosen = prototypes[candidates]
    lengths, norms = cells.square().sum(1), prototypes.square().sum(1)
    rough = torch.baddbmm(lengths[:, None], chosen, cells, alpha=-2.0) + norms[candidates][:, :, None]
    rough.masked_fill_((candidates == count)[:, :, None], torch.inf)
    # The standard bound on the rounding error of a sum of D products, twice, because both sides of a comparison round.
    reach = lengths.max().sqrt() + norms.max().sqrt()
    slack = 2.0 * (dimensions + 8) * torch.finfo(torch.float64).eps * reach * reach
    smallest = rough.amin(2)
    limit = functional.pad(best, (0, 1), value=-torch.inf)
    limit = limit.scatter_reduce(0, candidates.flatten(), smallest.flatten(), "amin") + slack
    index, slot = (smallest <= limit[candidates]).nonzero(as_tuple=True)
    rows = candidates[index, slot]
    row, cell = (rough[index, slot] <= limit[rows][:, None]).nonzero(as_tuple=True)
    prototype, index = rows[row], index[row]
    difference = cells[index, :, cell] - prototypes[prototype]
    return prototype, index, cell, _sum_of_squares(difference)


def _sum_of_squares(vectors: Tensor) -> Tensor:
    """[n]: the squared lengths of vectors [n, D], summed in pairs. A library's order of summation would depend on
    shape, threads and device."""
    width = 1 << max(0, vectors.shape[1] - 1).bit_length()
    squares = functional.pad(vectors.square(), (0, width - vectors.shape[1]))
    while width > 1:
        width //= 2
        squares = squares[:, :width] + squares[:, width:]
    return squares[:, 0]

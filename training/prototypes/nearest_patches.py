"""The training patches nearest to each prototype (Chen et al. 2019, section 2.3).

The search streams over the images and keeps a few candidates per prototype, so its memory does not grow with the data
set. The result does not depend on batches or their order. The search covers images of all classes, because the classes
of the patches show what a prototype represents.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead

# Limits the elements of the largest array, 8 bytes each, and so the memory, independently of the batch size.
BLOCK = 4_000_000


class NearestPatches(NamedTuple):
    """The nearest images of each prototype, nearest first.

    `image` int64 [P, K]: their numbers in the data set. `cell` int64 [P, K]: the nearest cell of each. `distance`
    float64 [P, K]: its squared distance.
    """

    image: NDArray[np.int64]
    cell: NDArray[np.int64]
    distance: NDArray[np.float64]


@torch.inference_mode()
def nearest_patches(
    head: PrototypeHead, latents: Iterable[tuple[NDArray[np.int64], Tensor]], nearest: int
) -> NearestPatches:
    """The `nearest` images of each prototype, with one cell each; fewer if the data set is smaller.

    `latents` yields batches of (image numbers int64 [n], latent maps float32 [n, D, rows, columns]), each image once,
    in any order. Distances are computed from differences in double precision. Ties go to the image with the lowest
    number, then to the first cell.
    """
    prototypes = head.vectors().detach().double()
    count = len(prototypes)
    # One row per candidate, sorted by prototype, then distance, then image.
    owner, image, cell = (np.empty(0, dtype=np.int64) for _ in range(3))
    distance = np.empty(0)
    limit = torch.full((count,), torch.inf, dtype=torch.float64, device=prototypes.device)
    for numbers, latent in latents:
        flat = latent.flatten(2)
        for part in torch.split(torch.arange(len(numbers)), max(1, BLOCK // (count * flat.shape[2]))):
            index, prototype, near_cell, near = _close_pairs(
                prototypes, flat[part.to(flat.device)].double(), limit, nearest
            )
            owner, image = np.append(owner, prototype), np.append(image, numbers[part[index].numpy()])
            cell, distance = np.append(cell, near_cell), np.append(distance, near)
            order = np.lexsort((cell, distance, image, owner))
            repeated = (np.diff(owner[order]) == 0) & (np.diff(image[order]) == 0)
            order = order[np.append(True, ~repeated)]
            order = order[np.lexsort((image[order], distance[order], owner[order]))]
            first = np.searchsorted(owner[order], np.arange(count))
            rank = np.arange(len(order)) - first[owner[order]]
            order = order[rank < nearest]
            owner, image, cell, distance = owner[order], image[order], cell[order], distance[order]
            if len(owner) == count * nearest:
                limit = torch.from_numpy(distance[nearest - 1 :: nearest].copy()).to(limit.device)
    return NearestPatches(image.reshape(count, -1), cell.reshape(count, -1), distance.reshape(count, -1))


def _close_pairs(
    prototypes: Tensor, cells: Tensor, limit: Tensor, nearest: int
) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Image index, prototype and cell int64 [pairs], and distance float64 [pairs], of all pairs that may be among the
    nearest.

    `prototypes` [P, D], `cells` [n, D, cells] and `limit` [P], the greatest distance of interest, are float64. A matrix
    product finds the candidate pairs; their distances are then computed from differences.
    """
    norms, lengths = prototypes.square().sum(1), cells.square().sum(1)
    rough = torch.baddbmm(lengths[:, None], prototypes.expand(len(cells), -1, -1), cells, alpha=-2.0) + norms[:, None]
    # The standard bound on the rounding error of a sum of D products, twice, because both sides of a comparison round.
    reach = lengths.max().sqrt() + norms.max().sqrt()
    slack = 2.0 * (prototypes.shape[1] + 8) * torch.finfo(torch.float64).eps * reach * reach
    smallest = rough.amin(2)  # [n, P]
    if len(cells) > nearest:
        limit = torch.minimum(limit, smallest.kthvalue(nearest, dim=0).values)
    index, prototype = (smallest <= limit + slack).nonzero(as_tuple=True)
    pair, cell = (rough[index, prototype] <= smallest[index, prototype][:, None] + slack).nonzero(as_tuple=True)
    index, prototype = index[pair], prototype[pair]
    distance = (cells[index, :, cell] - prototypes[prototype]).square().sum(1)
    return index.cpu(), prototype.cpu().numpy(), cell.cpu().numpy(), distance.cpu().numpy()


def own_patches(head: PrototypeHead, patches: NearestPatches, leaves: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [P, K]: whether each patch has the prototype's class, that is, comes from an image below its child; `leaves`
    int64 [images] are indices into `taxonomy.leaves`."""
    child = head.grouping.prototype_child.cpu().numpy()
    return np.asarray(head.taxonomy.leaves_below[child[:, None], leaves[patches.image]])


def own_weights(head: PrototypeHead) -> Tensor:
    """[P]: the weight between each prototype and its child."""
    member = head.grouping.node_member[head.grouping.prototype_child]
    return head.effective_weight()[head.grouping.prototype_group, member, head.grouping.prototype_slot].detach()

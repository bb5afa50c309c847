"""The training patches nearest to each prototype (Chen et al. 2019, section 2.3).

The search streams over the images and keeps a few candidates per prototype, so its memory does not grow with the data
set. Neither the batches nor their order change the result. It searches all images, whatever their class: the classes of
the patches around a prototype show what it stands for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead

# Numbers in the largest array of a block (double precision, so 8 bytes each): bounds the memory whatever the batch.
BLOCK = 4_000_000


class NearestPatches(NamedTuple):
    """Per prototype its nearest images, nearest first: image int64 [P, K] (numbers in the data set), the best cell of
    each int64 [P, K], and the squared distance there float64 [P, K]."""

    image: NDArray[np.int64]
    cell: NDArray[np.int64]
    distance: NDArray[np.float64]


@torch.inference_mode()
def nearest_patches(
    head: PrototypeHead, latents: Iterable[tuple[NDArray[np.int64], Tensor]], nearest: int
) -> NearestPatches:
    """The `nearest` images of each prototype, one cell each; all of them where the data set has fewer.

    `latents` gives batches of (image numbers int64 [n], latent maps float32 [n, D, rows, columns]), each image once, in
    any order. Distances are differences in double precision; ties go to the image that comes first, then to its first
    cell.
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
            place, prototype, at, found = _close_pairs(prototypes, flat[part.to(flat.device)].double(), limit, nearest)
            owner, image = np.append(owner, prototype), np.append(image, numbers[part[place].numpy()])
            cell, distance = np.append(cell, at), np.append(distance, found)
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
    """place, prototype, cell int64 [pairs] and distance float64 [pairs] of all that may be among the nearest.

    `prototypes` [P, D], `cells` [n, D, cells], `limit` [P] the greatest distance still of interest, all float64. The
    product's own distances only leave pairs out; what remains is computed from the difference.
    """
    norms, lengths = prototypes.square().sum(1), cells.square().sum(1)
    rough = torch.baddbmm(lengths[:, None], prototypes.expand(len(cells), -1, -1), cells, alpha=-2.0) + norms[:, None]
    # The classical bound of a sum of D products, twice, for both sides of a comparison err.
    reach = lengths.max().sqrt() + norms.max().sqrt()
    slack = 2.0 * (prototypes.shape[1] + 8) * torch.finfo(torch.float64).eps * reach * reach
    smallest = rough.amin(2)  # [n, P]
    if len(cells) > nearest:
        limit = torch.minimum(limit, smallest.kthvalue(nearest, dim=0).values)
    place, prototype = (smallest <= limit + slack).nonzero(as_tuple=True)
    pair, at = (rough[place, prototype] <= smallest[place, prototype][:, None] + slack).nonzero(as_tuple=True)
    place, prototype = place[pair], prototype[pair]
    distance = (cells[place, :, at] - prototypes[prototype]).square().sum(1)
    return place.cpu(), prototype.cpu().numpy(), at.cpu().numpy(), distance.cpu().numpy()


def own_patches(head: PrototypeHead, patches: NearestPatches, leaves: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [P, K] whether each patch is of the prototype's class, that is, from an image below its child; `leaves`
    int64 [images] are places in `taxonomy.leaves`."""
    child = head.grouping.prototype_child.cpu().numpy()
    return np.asarray(head.taxonomy.leaves_below[child[:, None], leaves[patches.image]])


def own_weights(head: PrototypeHead) -> Tensor:
    """[P] the weight between each prototype and its child."""
    member = head.grouping.node_member[head.grouping.prototype_child]
    return head.effective_weight()[head.grouping.prototype_group, member, head.grouping.prototype_slot].detach()

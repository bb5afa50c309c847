"""Projection (“push”): each prototype becomes the nearest cell of a training image of its own class.

Chen et al. 2019, eq. 4. The search streams over the images and keeps one candidate per prototype, so its memory
does not grow with the data set, and neither batch size nor order of the images changes the result: distances are
computed per pair, and ties go to the image that comes first in the data set, then to the first cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from protoserve.networks.head import PrototypeHead

# Pairs looked at together: bounds the memory at about PAIRS × D × cells × 8 bytes, however large the batch.
PAIRS = 512


class Projection(NamedTuple):
    """Per prototype: image int64 [P] (its number in the data set), cell int64 [P], squared distance before projection
    float64 [P], and the vector found float32 [P, D]."""

    image: Tensor
    cell: Tensor
    distance: Tensor
    vector: Tensor


@torch.inference_mode()
def find_nearest(head: PrototypeHead, latents: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Projection:
    """The nearest own-class cell of each prototype.

    `latents` gives batches of (numbers int64 [n], leaves int64 [n], latent maps float32 [n, D, rows, columns]),
    each image once, in any order. A prototype's own class is its child: every leaf below it counts. Only pairs of
    an image and a prototype of its own class are looked at, a few per image however many prototypes there are, so
    their distances are exact differences in double precision.
    Raises RuntimeError when a prototype has no image of its own class.
    """
    count, dimensions = head.prototypes.shape
    own = torch.from_numpy(head.taxonomy.leaves_below)[head.prototype_child.cpu()]  # [P, leaves]
    prototypes = head.prototypes.double()
    best = torch.full((count,), torch.inf, dtype=torch.float64)
    image = torch.full((count,), torch.iinfo(torch.int64).max, dtype=torch.int64)
    cell = torch.zeros(count, dtype=torch.int64)
    vector = torch.zeros(count, dimensions)
    for numbers, leaves, latent in latents:
        prototype, place = own[:, leaves].nonzero(as_tuple=True)
        flat = latent.flatten(2)
        for part in torch.split(torch.arange(len(place)), PAIRS):
            distance, at = _nearest_cell(prototypes, flat, prototype[part], place[part])
            # The best pair of each prototype in this part: smallest distance, then smallest image number.
            order = np.lexsort((numbers[place[part]], distance, prototype[part]))
            owners = prototype[part][order]
            first = torch.cat([torch.ones(1, dtype=torch.bool), owners[1:] != owners[:-1]])
            winner, owner = torch.from_numpy(order)[first], owners[first]
            found, number = distance[winner], numbers[place[part][winner]]
            better = (found < best[owner]) | ((found == best[owner]) & (number < image[owner]))
            winner, owner = winner[better], owner[better]
            best[owner], image[owner], cell[owner] = distance[winner], number[better], at[winner]
            vector[owner] = flat[place[part][winner], :, at[winner]].cpu()
    if not torch.isfinite(best).all():
        lacking = int((~torch.isfinite(best)).nonzero()[0])
        name = head.taxonomy.names[int(head.prototype_child[lacking])]
        raise RuntimeError(f"prototype {lacking} of {name!r} has no training image of its own class")
    return Projection(image, cell, best, vector)


def _nearest_cell(prototypes: Tensor, flat: Tensor, prototype: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Distance float64 and first nearest cell of each pair; `flat` [n, D, cells]."""
    difference = flat[place].double() - prototypes[prototype][:, :, None]
    nearest = difference.square().sum(1).cpu().min(dim=1)
    return nearest.values, nearest.indices

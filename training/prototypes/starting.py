"""Prototypes that start from data: k-means over the training cells of each child."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead

CELLS_PER_CHILD = 8192


@torch.inference_mode()
def start_from_data(
    head: PrototypeHead,
    latent: Callable[[NDArray[np.int64]], Tensor],
    leaves: NDArray[np.int64],
    seed: int,
    telling: Callable[[int, NDArray[np.int64]], Tensor | None],
    advance: Callable[[int], None],
) -> None:
    """Set the prototypes of every child to cluster centres of its own training cells.

    `latent(numbers)` gives latent maps [n, D, rows, columns]; `leaves` [images] are places in `taxonomy.leaves`.
    At most 8,192 cells of a child are looked at, of those where `telling(child, numbers)`, bool [n, rows, columns],
    holds (None: of all). Where a child has fewer distinct cells than prototypes, cells repeat with a small jitter.
    """
    from sklearn.cluster import KMeans

    below = head.taxonomy.leaves_below
    children = head.grouping.prototype_child.cpu().numpy()
    generator = np.random.default_rng((seed, 1))
    for child in np.unique(children):
        places = np.flatnonzero(children == child)
        numbers = np.flatnonzero(below[child][leaves])
        numbers = np.sort(generator.choice(numbers, min(len(numbers), 512), replace=False))
        found, chosen = latent(numbers).movedim(1, -1).flatten(0, 2), telling(int(child), numbers)
        cells = (found if chosen is None else found[chosen.flatten()]).cpu().numpy()
        cells = cells[generator.permutation(len(cells))[:CELLS_PER_CHILD]]
        distinct = np.unique(cells, axis=0)
        if len(distinct) > len(places):
            centres = KMeans(len(places), n_init=1, max_iter=30, random_state=seed).fit(cells).cluster_centers_
        else:
            centres = distinct[np.arange(len(places)) % len(distinct)]
            centres = centres + generator.normal(0.0, 1e-3, centres.shape)
        head.prototypes[places] = torch.from_numpy(centres.astype(np.float32)).to(head.prototypes.device)
        advance(len(places))

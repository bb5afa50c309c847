"""Initialise prototypes from data: k-means over the training cells of each child."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead

# Limits on the images and cells of a child to cluster.
IMAGES_PER_CHILD = 512
CELLS_PER_CHILD = 8192


@torch.inference_mode()
def start_from_data(
    head: PrototypeHead,
    latent: Callable[[NDArray[np.int64]], Tensor],
    leaves: NDArray[np.int64],
    seed: int,
    mask: Callable[[int, NDArray[np.int64]], Tensor | None],
    advance: Callable[[int], None],
) -> None:
    """Set the prototypes of every child to cluster centres of its own training cells.

    `latent(numbers)` returns latent maps [n, D, rows, columns]; `leaves` int64 [images] are indices into
    `taxonomy.label_nodes`. `mask(child, numbers)`, bool [n, rows, columns], selects the cells to use; None selects all.
    Uses a random sample of at most `IMAGES_PER_CHILD` images and `CELLS_PER_CHILD` cells per child. If a child has
    fewer distinct cells than prototypes, its cells repeat with a small jitter.
    """
    from sklearn.cluster import KMeans

    below = head.taxonomy.labels_below
    children = head.grouping.prototype_child.cpu().numpy()
    generator = np.random.default_rng((seed, 1))
    for child in np.unique(children):
        prototypes = np.flatnonzero(children == child)
        numbers = np.flatnonzero(below[child][leaves])
        numbers = np.sort(generator.choice(numbers, min(len(numbers), IMAGES_PER_CHILD), replace=False))
        all_cells, selected = latent(numbers).movedim(1, -1).flatten(0, 2), mask(int(child), numbers)
        cells = (all_cells if selected is None else all_cells[selected.flatten()]).cpu().numpy()
        cells = cells[generator.permutation(len(cells))[:CELLS_PER_CHILD]]
        distinct = np.unique(cells, axis=0)
        if len(distinct) > len(prototypes):
            centres = KMeans(len(prototypes), n_init=1, max_iter=30, random_state=seed).fit(cells).cluster_centers_
        else:
            centres = distinct[np.arange(len(prototypes)) % len(distinct)]
            centres = centres + generator.normal(0.0, 1e-3, centres.shape)
        head.prototypes[prototypes] = torch.from_numpy(centres.astype(np.float32)).to(head.prototypes.device)
        advance(len(prototypes))

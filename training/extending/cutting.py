"""Cut the prototypes of a new class from its pictures: cluster centres of its cells, each moved to a real cell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError

# Cells to cluster at most; a class of more pictures is sampled.
MOST_CELLS = 8192


class CutCells(NamedTuple):
    """The cells that prototypes were cut from: `image` int64 [k], a row of the given maps; `cell` int64 [k], row ·
    columns + column; `distance` float64 [k], the squared distance from the cluster centre; `vector` float32 [k, D]."""

    image: NDArray[np.int64]
    cell: NDArray[np.int64]
    distance: NDArray[np.float64]
    vector: NDArray[np.float32]


def cut(latent: NDArray[np.float32], number: int, seed: int) -> CutCells:
    """Cut `number` different cells from latent maps [images, D, cells], by k-means (as training starts) and projection.

    The centres take turns, the one with the nearest cell first; each takes the nearest cell that is left. The result
    depends on the maps, the number and the seed only. Raises InputError if there are fewer different cells.
    """
    from sklearn.cluster import KMeans

    images, dimensions, cells = latent.shape
    flat = np.ascontiguousarray(latent.transpose(0, 2, 1)).reshape(images * cells, dimensions)
    _, first = np.unique(flat, axis=0, return_index=True)
    if len(first) < number:
        raise InputError(f"{images} pictures have {len(first)} different cells, fewer than {number} prototypes need")
    places = np.sort(first)
    if len(places) > MOST_CELLS:
        places = np.sort(np.random.default_rng((seed, 3)).choice(places, MOST_CELLS, replace=False))
    candidates = flat[places].astype(np.float64)
    centres = KMeans(number, n_init=3, random_state=seed).fit(candidates).cluster_centers_
    distance = ((candidates[None] - centres[:, None]) ** 2).sum(axis=2)
    chosen = np.empty(number, dtype=np.int64)
    apart = np.empty(number)
    waiting = distance.copy()
    for _ in range(number):
        centre, cell = np.unravel_index(waiting.argmin(), waiting.shape)
        chosen[centre], apart[centre] = cell, distance[centre, cell]
        waiting[centre], waiting[:, cell] = np.inf, np.inf
    place = places[chosen]
    return CutCells(place // cells, place % cells, apart, flat[place].astype(np.float32))

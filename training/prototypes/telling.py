"""Find training cells that tell a class from its siblings, to replace prototypes that do not.

A prototype may end on something that all siblings share, such as background: it is similar to every picture and decides
nothing. Here cells of the class's own training images are candidates for its place. Each is scored by how far the
similarities of the class's images lie above those of the siblings' (Cohen's d, see
`protoserve.similarity_statistics`), as discriminative patches are mined (Singh, Gupta & Efros 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead

# Images of a child, and of each of its siblings, that candidates are compared with. More change the scores little.
IMAGES_PER_CHILD = 256


class Candidates(NamedTuple):
    """Cells of training images: `vector` [K, D] their latents, `image` int64 [K] the numbers of their images, `cell`
    int64 [K], and `effect` float64 [K], how many standard deviations each tells the class from its siblings by."""

    vector: Tensor
    image: NDArray[np.int64]
    cell: NDArray[np.int64]
    effect: NDArray[np.float64]


@torch.inference_mode()
def telling_cells(
    head: PrototypeHead,
    latents: Callable[[NDArray[np.int64]], Iterator[Tensor]],
    leaves: NDArray[np.int64],
    child: int,
    *,
    number: int,
    candidates: int,
    correlation: float,
    seed: int,
) -> Candidates:
    """Return up to `number` cells that tell `child` from its siblings best and differ from each other.

    `latents(images)` yields batches of latent maps [n, D, rows, columns] of training images; `leaves` int64 [images]
    are indices into `taxonomy.label_nodes`. Scores `candidates` random cells of the child's images. Takes them by
    falling effect, but leaves out those whose similarities to the child's images correlate with a chosen cell's by more
    than `correlation`: they would say the same again. A candidate's own image does not count for it.
    """
    taxonomy, generator = head.taxonomy, np.random.default_rng((seed, 3, child))
    nodes = taxonomy.children_of(int(taxonomy.parent[child])) if head.kind == "hierarchical" else taxonomy.leaves
    images = {node: _sample(np.flatnonzero(taxonomy.labels_below[node][leaves]), generator) for node in nodes}
    own = images.pop(child)
    maps = torch.cat([*latents(own)]).flatten(2)  # [own, D, cells]
    index, cell = generator.integers(0, len(own), candidates), generator.integers(0, maps.shape[2], candidates)
    vector = maps[torch.from_numpy(index).to(maps.device), :, torch.from_numpy(cell).to(maps.device)]
    similarity = _similarities(head, vector, maps)
    siblings = [
        np.concatenate([_similarities(head, vector, batch.flatten(2)) for batch in latents(numbers)])
        for numbers in images.values()
        if len(numbers)
    ]
    own_image = np.arange(len(own))[:, None] == index[None]
    effect = _effect(np.where(own_image, np.nan, similarity), siblings)
    chosen = _distinct(similarity, np.argsort(-effect, kind="stable"), number, correlation)
    return Candidates(
        vector[torch.from_numpy(chosen).to(vector.device)], own[index[chosen]], cell[chosen], effect[chosen]
    )


def _sample(numbers: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(generator.choice(numbers, min(len(numbers), IMAGES_PER_CHILD), replace=False))


def _similarities(head: PrototypeHead, vector: Tensor, maps: Tensor) -> NDArray[np.float64]:
    """Return the similarities [n, K] of vectors [K, D] at the best of each image's cells `maps` [n, D, cells]."""
    lengths = maps.square().sum(1)[:, None]
    distance = (lengths - 2.0 * torch.matmul(vector, maps) + vector.square().sum(1)[None, :, None]).amin(2)
    return head.similarity_of(distance.clamp_min(0.0)).double().cpu().numpy()


def _effect(own: NDArray[np.float64], siblings: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return Cohen's d [K] of `own` [n, K], without NaN, over the siblings' similarities, each sibling counting the
    same; 0 without siblings or with a single image."""
    if not siblings or len(own) < 2:
        return np.zeros(own.shape[1])
    mean = np.mean([part.mean(axis=0) for part in siblings], axis=0)
    square = np.mean([(part * part).mean(axis=0) for part in siblings], axis=0)
    variance = (np.nanvar(own, axis=0) + np.maximum(square - mean * mean, 0.0)) / 2
    return np.asarray((np.nanmean(own, axis=0) - mean) / np.sqrt(np.maximum(variance, 1e-12)))


def _distinct(
    similarity: NDArray[np.float64], order: NDArray[np.int64], number: int, correlation: float
) -> NDArray[np.int64]:
    """Return the first `number` columns of `similarity` [n, K] in this order that correlate with none chosen before by
    more than `correlation`; then, if these are too few, the first of the others."""
    centred = similarity - similarity.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12)
    chosen: list[int] = []
    for candidate in order.tolist():
        if len(chosen) < number and all(unit[:, candidate] @ unit[:, other] <= correlation for other in chosen):
            chosen.append(candidate)
    others = [candidate for candidate in order.tolist() if candidate not in chosen]
    return np.array(chosen + others[: number - len(chosen)], dtype=np.int64)

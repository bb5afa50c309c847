"""How far a network without tiles looks around a cell: the region that holds most of a similarity's gradient.

A cell of a deep network's feature map depends on far more of the picture than the cell's own share. How much of that
counts is a property of the trained network (Luo et al. 2016, "Understanding the effective receptive field"), so it is
measured on pictures, once, when the network is exported.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.networks.model_file import ExplainedNetwork

SHARE = 0.9
# Enough for a mean: on the shipped networks, more pictures move it by less than a pixel.
PICTURES = 16


def measure_reach(network: ExplainedNetwork, samples: NDArray[np.uint8], share: float = SHARE) -> tuple[int, int]:
    """Return how many pixels above and below, and left and right of a cell's centre hold `share` of the gradient.

    `samples` are uint8 [pictures, H, W, 3] at model size. For the first evidence of every level of each picture, the
    gradient of its similarity with respect to the picture is summed over the colours, in absolute value. The reach is
    the half of the smallest box around the cell's centre, of the cell's own proportions, that holds the share; it is
    averaged over all pieces of evidence and rounded up. At most it is the picture's own height and width.

    Raises ValueError if `share` is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    chosen = samples[np.linspace(0, len(samples) - 1, min(PICTURES, len(samples))).astype(np.int64)]
    reaches = [reach for picture in chosen for reach in _reaches(network, picture, share)]
    cells = float(np.mean(reaches)) if reaches else 0.5
    height, width = samples.shape[1:3]
    with torch.inference_mode():
        rows, columns = network.latent(network.features(torch.from_numpy(samples[:1]))).shape[2:]
    return min(height, int(np.ceil(cells * height / rows))), min(width, int(np.ceil(cells * width / columns)))


def _reaches(network: ExplainedNetwork, picture: NDArray[np.uint8], share: float) -> list[float]:
    """Return the reach of each level's first evidence, in cells."""
    pixels = torch.from_numpy(picture[None]).float().requires_grad_(True)
    latent = network.latent(network.features(pixels))
    with torch.no_grad():
        explained = network.explain(torch.from_numpy(picture[None]), 1)
    vectors = network.head.vectors()
    rows, columns = latent.shape[2:]
    reaches = []
    for prototype, cell in zip(
        explained.evidence_prototype.flatten().tolist(), explained.evidence_cell.flatten().tolist(), strict=True
    ):
        if prototype < 0:
            continue
        row, column = divmod(cell, columns)
        distance = (latent[0, :, row, column] - vectors[prototype]).square().sum()
        (gradient,) = torch.autograd.grad(network.head.similarity_of(distance), pixels, retain_graph=True)
        strength = gradient[0].abs().sum(2).double().numpy()
        if strength.sum() > 0:
            reaches.append(_half_side(strength, row, column, rows, columns, share))
    return reaches


def _half_side(strength: NDArray[np.float64], row: int, column: int, rows: int, columns: int, share: float) -> float:
    """Return half the side, in cells, of the smallest box around a cell's centre that holds `share` of `strength`."""
    height, width = strength.shape
    down = np.abs((np.arange(height) + 0.5) * rows / height - (row + 0.5))
    across = np.abs((np.arange(width) + 0.5) * columns / width - (column + 0.5))
    distance = np.maximum(down[:, None], across[None, :]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(strength.ravel()[order])
    return float(distance[order[np.searchsorted(held, share * held[-1])]])

"""Elastic deformation (Simard, Steinkraus, Platt 2003): a smooth random field moves every pixel.

The libraries' own do not fit. torchvision's `elastic` takes one field per call, so that a batch with a field for each
picture takes about ninety times as long; kornia's `elastic_transform2d` smooths by a convolution, which takes three to
four times as long on 250 pictures of 28 × 28, and counts alpha in halves of the picture's side instead of pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """[size, size] convolution with a normalised Gaussian of standard deviation `sigma` pixels, zero outside the
    picture, as a matrix. For small pictures one product is faster than a convolution.

    >>> float(gaussian_matrix(41, 2.0, torch.device("cpu"))[20].sum())  # doctest: +ELLIPSIS
    1.0...
    """
    positions = torch.arange(size, device=device, dtype=torch.float64)
    offsets = torch.arange(-4 * size, 4 * size + 1, device=device, dtype=torch.float64)
    total = torch.exp(-0.5 * (offsets / sigma) ** 2).sum()
    return (torch.exp(-0.5 * ((positions[:, None] - positions[None]) / sigma) ** 2) / total).float()


def displacements(
    count: int, height: int, width: int, *, sigma: float, alpha: float, generator: torch.Generator
) -> Tensor:
    """[count, 2, height, width] displacements in pixels, along x and then y: uniform noise in [−1, 1] smoothed by a
    Gaussian of `sigma` pixels, times `alpha`. The random numbers, and the result, live on the generator's device."""
    device = generator.device
    noise = torch.rand(count, 2, height, width, generator=generator, device=device) * 2.0 - 1.0
    down, across = gaussian_matrix(height, sigma, device), gaussian_matrix(width, sigma, device)
    return alpha * torch.matmul(torch.matmul(down, noise), across)


def move(planes: Tensor, displacement: Tensor) -> Tensor:
    """Pictures [N, planes, H, W] whose pixel (x, y) comes from (x, y) + displacement [N, 2, H, W] (x, then y, in
    pixels), interpolated linearly; beyond the picture, its edge is repeated."""
    height, width = planes.shape[2:]
    rows = torch.arange(height, device=planes.device, dtype=planes.dtype)[:, None]
    columns = torch.arange(width, device=planes.device, dtype=planes.dtype)[None]
    # grid_sample counts from −1 to 1 between the centres of the outermost pixels.
    x = (columns + displacement[:, 0]) * (2.0 / max(1, width - 1)) - 1.0
    y = (rows + displacement[:, 1]) * (2.0 / max(1, height - 1)) - 1.0
    return functional.grid_sample(
        planes, torch.stack([x, y], dim=3), mode="bilinear", padding_mode="border", align_corners=True
    )


def deform(planes: Tensor, *, sigma: float, alpha: float, generator: torch.Generator) -> Tensor:
    """Pictures [N, planes, H, W], each moved by a random field of its own. Published: `sigma` 4 and `alpha` 20 pixels
    on 28 × 28, which moves a pixel by 0.8 along each axis (standard deviation)."""
    count, _, height, width = planes.shape
    return move(planes, displacements(count, height, width, sigma=sigma, alpha=alpha, generator=generator))

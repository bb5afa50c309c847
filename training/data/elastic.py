"""Elastic deformation by a smooth random displacement field (Simard, Steinkraus, Platt 2003).

Libraries offer this, but slower. torchvision's `elastic` applies one field per call, so a batch with one field per
picture takes about 90 times as long. kornia's `elastic_transform2d` smooths by convolution, which takes three to four
times as long on 250 pictures of 28 × 28; its alpha is in halves of the picture's side instead of pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gaussian_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """[size, size]: the matrix of a convolution with a normalised Gaussian, with zeros beyond the picture.

    `sigma` is the standard deviation in pixels. For small pictures a matrix product is faster than a convolution.

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
    """[count, 2, height, width]: displacements in pixels, along x and then y, on the generator's device.

    They are uniform noise in [−1, 1], smoothed by a Gaussian with a standard deviation of `sigma` pixels and multiplied
    by `alpha`.
    """
    device = generator.device
    noise = torch.rand(count, 2, height, width, generator=generator, device=device) * 2.0 - 1.0
    down, across = gaussian_matrix(height, sigma, device), gaussian_matrix(width, sigma, device)
    return alpha * torch.matmul(torch.matmul(down, noise), across)


def move(planes: Tensor, displacement: Tensor) -> Tensor:
    """Warp pictures [N, planes, H, W]: pixel (x, y) is sampled at (x, y) + `displacement` [N, 2, H, W] (x, then y, in
    pixels), with bilinear interpolation. Samples beyond the picture repeat its edge."""
    height, width = planes.shape[2:]
    rows = torch.arange(height, device=planes.device, dtype=planes.dtype)[:, None]
    columns = torch.arange(width, device=planes.device, dtype=planes.dtype)[None]
    # grid_sample's coordinates go from −1 to 1 between the centres of the outermost pixels.
    x = (columns + displacement[:, 0]) * (2.0 / max(1, width - 1)) - 1.0
    y = (rows + displacement[:, 1]) * (2.0 / max(1, height - 1)) - 1.0
    return functional.grid_sample(
        planes, torch.stack([x, y], dim=3), mode="bilinear", padding_mode="border", align_corners=True
    )


def deform(planes: Tensor, *, sigma: float, alpha: float, generator: torch.Generator) -> Tensor:
    """Warp pictures [N, planes, H, W], each by a random field of its own.

    The published values are `sigma` 4 and `alpha` 20 pixels for pictures of 28 × 28. The displacements then have a
    standard deviation of 0.8 pixels along each axis.
    """
    count, _, height, width = planes.shape
    return move(planes, displacements(count, height, width, sigma=sigma, alpha=alpha, generator=generator))

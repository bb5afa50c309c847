"""Elastic deformation against sums written out, and what it must leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.data.elastic import deform, displacements, move


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(sigma: float, reach: int) -> NDArray[np.float64]:
    offsets = np.arange(-reach, reach + 1)
    weights: NDArray[np.float64] = np.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / float(weights.sum())


def test_displacements_are_smoothed_noise() -> None:
    height, width, sigma, alpha = 9, 7, 1.5, 5.0
    found = displacements(2, height, width, sigma=sigma, alpha=alpha, generator=generator())
    noise = torch.rand(2, 2, height, width, generator=generator()).double().numpy() * 2 - 1
    kernel = gaussian(sigma, 40)
    for image, axis, row, column in np.ndindex(2, 2, height, width):
        total = 0.0
        for other_row, other_column in np.ndindex(height, width):
            total += (
                noise[image, axis, other_row, other_column]
                * kernel[40 + row - other_row]
                * kernel[40 + column - other_column]
            )
        assert found[image, axis, row, column].item() == pytest.approx(alpha * total, abs=1e-5)


def test_the_published_strength_moves_pixels_by_about_one() -> None:
    """Uniform noise has the variance 1/3; a Gaussian of σ pixels brings it down by 1/(4πσ²) far from the edges."""
    found = displacements(400, 28, 28, sigma=4.0, alpha=20.0, generator=generator())
    middle = found[:, :, 12:16, 12:16]
    expected = 20.0 * math.sqrt(1 / 3) / (2 * 4.0 * math.sqrt(math.pi))
    assert middle.std().item() == pytest.approx(expected, rel=0.1)
    assert middle.mean().item() == pytest.approx(0.0, abs=0.1)


def bilinear(picture: NDArray[np.float64], x: float, y: float) -> float:
    height, width = picture.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    across, down = x - left, y - top
    upper = (1 - across) * picture[top, left] + across * picture[top, left + 1]
    lower = (1 - across) * picture[top + 1, left] + across * picture[top + 1, left + 1]
    return float((1 - down) * upper + down * lower)


def test_pixels_come_from_where_they_are_said_to() -> None:
    planes = torch.rand(2, 3, 6, 8, generator=generator())
    displacement = (torch.rand(2, 2, 6, 8, generator=generator(1)) - 0.5) * 6
    found = move(planes, displacement)
    for image, plane, row, column in np.ndindex(2, 3, 6, 8):
        x = column + displacement[image, 0, row, column].item()
        y = row + displacement[image, 1, row, column].item()
        expected = bilinear(planes[image, plane].double().numpy(), x, y)
        assert found[image, plane, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_a_whole_pixel_s_move_is_a_shift() -> None:
    planes = torch.rand(1, 1, 5, 5, generator=generator())
    displacement = torch.zeros(1, 2, 5, 5)
    displacement[:, 0] = 1.0
    found = move(planes, displacement)
    torch.testing.assert_close(found[..., :-1], planes[..., 1:])
    torch.testing.assert_close(found[..., -1], planes[..., -1])


def test_nothing_moves_without_strength_or_contrast() -> None:
    planes = torch.rand(2, 1, 10, 12, generator=generator())
    torch.testing.assert_close(deform(planes, sigma=4.0, alpha=0.0, generator=generator()), planes)
    flat = torch.full((2, 1, 10, 12), 0.3)
    torch.testing.assert_close(deform(flat, sigma=2.0, alpha=50.0, generator=generator()), flat)


def test_every_picture_moves_in_its_own_way_that_the_seed_decides() -> None:
    planes = torch.rand(1, 1, 12, 12, generator=generator()).expand(3, -1, -1, -1)
    first, again, other = (deform(planes, sigma=2.0, alpha=20.0, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    assert bool((first >= 0).all()) and bool((first <= 1).all())

"""Distances from one product and a second look, against double precision."""

import math

import pytest
import torch

from protoserve.networks.distances import most_looks, near, nearest_cells, product_error, squares
from protoserve.networks.similarity import on_sphere, similarity

FORMS = ("log1p", "log-ratio", "cosine", "negative-distance")


def drawn(dimensions, unit, seed=0, prototypes=200, scale=1.0):
    """Latent cells [6, 25, D], and prototypes of which half are cells, some moved a little."""
    torch.manual_seed(seed)
    cells = scale * torch.rand(6, 25, dimensions)
    flat = cells.reshape(-1, dimensions)
    vectors = scale * torch.rand(prototypes, dimensions)
    moved = torch.logspace(-6, 0, prototypes // 2)[:, None] * torch.randn(prototypes // 2, dimensions)
    moved[:50] = 0.0
    vectors[: prototypes // 2] = flat[torch.randint(len(flat), (prototypes // 2,))] + scale * moved
    return (on_sphere(cells - 0.5, 2), on_sphere(vectors - 0.5, 1)) if unit else (cells, vectors)


def in_double(cells, vectors):
    exact = torch.cdist(cells.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return exact.square().min(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dimensions", [8, 128, 512])
@pytest.mark.parametrize("looks", ["counted", "bounded"])
def test_similarities_are_right_everywhere_also_at_projected_prototypes(form, dimensions: int, looks: str) -> None:
    unit = form == "cosine"
    cells, vectors = drawn(dimensions, unit)
    radius = near(form, 1e-4, vectors)
    bound = most_looks(vectors, radius, cells.shape[1]) if looks == "bounded" else None
    distance, cell = nearest_cells(cells, vectors, squares(vectors, unit), unit, radius, bound)
    expected, _ = in_double(cells, vectors)
    error = similarity(distance.double(), form, 1e-4) - similarity(expected, form, 1e-4)
    assert float(error.abs().max()) < 1e-3
    at_cell = cells.double().gather(1, cell[:, :, None].expand(-1, -1, dimensions)) - vectors.double()
    assert float((at_cell.square().sum(2) - expected).max()) <= product_error(vectors)


def test_without_the_second_look_an_exact_match_is_wrong() -> None:
    """The reason for it: were this to pass, the second look could go."""
    cells, vectors = drawn(128, unit=False)
    distance, _ = nearest_cells(cells, vectors, squares(vectors, False), False, radius=0.0)
    error = similarity(distance.double(), "log1p", 1e-4) - similarity(in_double(cells, vectors)[0], "log1p", 1e-4)
    assert float(error.abs().max()) > 1e-2


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dimensions", [2, 32, 128, 1024])
def test_the_product_is_never_off_by_more_than_its_bound(dimensions: int, scale: float) -> None:
    for seed in range(3):
        cells, vectors = drawn(dimensions, False, seed, scale=scale)
        offset = squares(vectors, False)
        distance, _ = nearest_cells(cells, vectors, offset, False, radius=0.0)
        expected, _ = in_double(cells, vectors)
        close = expected < 0.01 * offset.double()
        assert close.any()
        assert float((distance - expected)[close].abs().max()) <= product_error(vectors)


@pytest.mark.parametrize("dimensions", [6, 128])
def test_no_picture_needs_more_looks_than_the_bound(dimensions: int) -> None:
    torch.manual_seed(2)
    vectors = torch.rand(300, dimensions)
    vectors[10:40] = vectors[0] + 1e-3 * torch.randn(30, dimensions)
    vectors[50:55] = vectors[41]
    radius = near("log1p", 1e-4, vectors)
    # By brute force: cells on the most crowded prototypes.
    counts = (torch.cdist(vectors.double(), vectors.double()).square() <= radius).sum(1)
    for cells in (1, 2, 9):
        picture = vectors[counts.argsort(descending=True)[:cells]][None]
        needed = int((in_double(picture, vectors)[0] < radius).sum())
        assert needed <= most_looks(vectors, radius, cells)
    assert most_looks(vectors, radius, 1) == 31
    assert dimensions == 6 or most_looks(vectors[60:200], radius, 9) == 9
    assert most_looks(vectors, math.inf, 9) == 300
    assert most_looks(vectors, 0.0, 9) == 0

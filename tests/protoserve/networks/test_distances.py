"""Distances from one refined product, against double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from protoserve.networks.distances import (
    distance_offsets,
    max_refinements,
    nearest_cells,
    product_error,
    refinement_radius,
)
from protoserve.networks.similarity import Similarity, SimilarityForm, to_unit_length

FORMS = ("log1p", "log-ratio", "cosine", "negative-distance")


def drawn(dimensions: int, unit: bool, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Latent cells [6, 25, D], and 200 prototypes of which half are cells, some moved a little."""
    prototypes = 200
    torch.manual_seed(seed)
    cells = scale * torch.rand(6, 25, dimensions)
    flat = cells.reshape(-1, dimensions)
    vectors = scale * torch.rand(prototypes, dimensions)
    moved = torch.logspace(-6, 0, prototypes // 2)[:, None] * torch.randn(prototypes // 2, dimensions)
    moved[:50] = 0.0
    vectors[: prototypes // 2] = flat[torch.randint(len(flat), (prototypes // 2,))] + scale * moved
    return (to_unit_length(cells - 0.5, 2), to_unit_length(vectors - 0.5, 1)) if unit else (cells, vectors)


def in_double(cells: Tensor, vectors: Tensor) -> Tensor:
    """The squared distances [N, P] of `vectors` [P, D] to the nearest of `cells` [N, C, D]."""
    exact: Tensor = torch.cdist(cells.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return exact.square().amin(1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dimensions", [8, 128, 512])
@pytest.mark.parametrize("refinements", ["counted", "bounded"])
def test_similarities_are_right_everywhere_also_at_projected_prototypes(
    form: SimilarityForm, dimensions: int, refinements: str
) -> None:
    similarity = Similarity(form)
    unit = similarity.needs_unit_length
    cells, vectors = drawn(dimensions, unit)
    radius = refinement_radius(similarity, vectors)
    bound = max_refinements(vectors, radius, cells.shape[1]) if refinements == "bounded" else None
    distance, cell = nearest_cells(cells, vectors, distance_offsets(vectors, unit), unit, radius, bound)
    expected = in_double(cells, vectors)
    error = similarity.of_distance(distance.double()) - similarity.of_distance(expected)
    assert float(error.abs().max()) < 1e-3
    at_cell = cells.double().gather(1, cell[:, :, None].expand(-1, -1, dimensions)) - vectors.double()
    assert float((at_cell.square().sum(2) - expected).max()) <= product_error(vectors)


def test_without_refinement_an_exact_match_is_wrong() -> None:
    """The reason for refinement: if this error were small, refinement could go."""
    similarity = Similarity("log1p")
    cells, vectors = drawn(128, unit=False)
    distance, _ = nearest_cells(cells, vectors, distance_offsets(vectors, False), False, radius=0.0)
    error = similarity.of_distance(distance.double()) - similarity.of_distance(in_double(cells, vectors))
    assert float(error.abs().max()) > 1e-2


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dimensions", [2, 32, 128, 1024])
def test_the_product_is_never_off_by_more_than_its_bound(dimensions: int, scale: float) -> None:
    for seed in range(3):
        cells, vectors = drawn(dimensions, False, seed, scale=scale)
        offset = distance_offsets(vectors, False)
        distance, _ = nearest_cells(cells, vectors, offset, False, radius=0.0)
        expected = in_double(cells, vectors)
        close = expected < 0.01 * offset.double()
        assert close.any()
        assert float((distance - expected)[close].abs().max()) <= product_error(vectors)


@pytest.mark.parametrize("dimensions", [6, 128])
def test_no_picture_needs_more_refinements_than_the_bound(dimensions: int) -> None:
    torch.manual_seed(2)
    vectors = torch.rand(300, dimensions)
    vectors[10:40] = vectors[0] + 1e-3 * torch.randn(30, dimensions)
    vectors[50:55] = vectors[41]
    radius = refinement_radius(Similarity("log1p"), vectors)
    # By brute force: cells on the most crowded prototypes.
    counts = (torch.cdist(vectors.double(), vectors.double()).square() <= radius).sum(1)
    for cells in (1, 2, 9):
        picture = vectors[counts.argsort(descending=True)[:cells]][None]
        needed = int((in_double(picture, vectors) < radius).sum())
        assert needed <= max_refinements(vectors, radius, cells)
    assert max_refinements(vectors, radius, 1) == 31
    assert dimensions == 6 or max_refinements(vectors[60:200], radius, 9) == 9
    assert max_refinements(vectors, math.inf, 9) == 300
    assert max_refinements(vectors, 0.0, 9) == 0

"""Prototypes cut from cells: each is a real cell, no two are the same, and clusters get one each."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.errors import InputError
from training.extending.cutting import cut


def test_each_cluster_gives_the_cell_nearest_to_its_mean() -> None:
    generator = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    latent = np.stack([centres[np.arange(6) % 3].T + generator.normal(0, 0.5, (2, 6)) for _ in range(4)])
    found = cut(latent.astype(np.float32), 3, seed=0)
    cells = latent.transpose(0, 2, 1).reshape(-1, 2).astype(np.float32)
    cluster = np.arange(len(cells)) % 3
    for image, cell, vector in zip(found.image, found.cell, found.vector, strict=True):
        place = image * 6 + cell
        assert (cells[place] == vector).all()
        own = cells[cluster == cluster[place]]
        apart = ((own - own.mean(axis=0)) ** 2).sum(axis=1)
        assert ((vector - own.mean(axis=0)) ** 2).sum() == pytest.approx(apart.min(), rel=1e-4)
    assert {int(place) % 3 for place in found.image * 6 + found.cell} == {0, 1, 2}


def test_prototypes_differ_even_if_there_are_as_many_as_cells() -> None:
    latent = np.random.default_rng(1).normal(size=(1, 3, 5)).astype(np.float32)
    found = cut(latent, 5, seed=0)
    assert sorted(found.cell.tolist()) == [0, 1, 2, 3, 4]
    assert found.distance == pytest.approx(np.zeros(5), abs=1e-9)


def test_the_result_depends_on_the_seed_and_the_cells_only() -> None:
    latent = np.random.default_rng(2).normal(size=(5, 4, 9)).astype(np.float32)
    first, second = cut(latent, 4, seed=3), cut(latent, 4, seed=3)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(first, second, strict=True))


def test_too_few_different_cells_are_refused() -> None:
    with pytest.raises(InputError, match="2 pictures have 1 different cells, fewer than 3 prototypes need"):
        cut(np.ones((2, 4, 6), dtype=np.float32), 3, seed=0)

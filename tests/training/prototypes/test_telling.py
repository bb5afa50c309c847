"""Cells that tell a class from its siblings are found among cells that all classes share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.similarity import Similarity
from protoserve.taxonomy import Kind, Taxonomy
from training.prototypes.telling import Candidates, telling_cells

TREE = Taxonomy.from_paths(["A/x", "A/y", "B"])
# Leaves are numbered breadth first.
B, X, Y = (TREE.leaves.index(TREE.index[name]) for name in ("B", "A/x", "A/y"))
LEAVES = np.repeat([B, X, Y], 12)
SIGN = {X: torch.tensor([1.0, 0.0, 0.0, 0.0]), Y: torch.tensor([0.0, 1.0, 0.0, 0.0])}


def maps() -> Tensor:
    """Latent maps [36, 4, 3, 3]: background that all classes share, and in one cell the class's own sign."""
    generator = torch.Generator().manual_seed(0)
    latent = 0.4 + 0.1 * torch.rand(len(LEAVES), 4, 3, 3, generator=generator)
    for image, leaf in enumerate(LEAVES.tolist()):
        cell = int(torch.randint(9, (1,), generator=generator))
        if leaf in SIGN:
            latent[image, :, cell // 3, cell % 3] = SIGN[leaf] + 0.02 * torch.rand(4, generator=generator)
    return latent


def found(child: str, kind: Kind = "hierarchical", number: int = 1, batch: int = 5, seed: int = 0) -> Candidates:
    head = PrototypeHead(TREE, prototype_children(TREE, kind, 2), 4, kind=kind, similarity=Similarity(epsilon=0.1))
    latent = maps()

    def latents(images: NDArray[np.int64]) -> Iterator[Tensor]:
        for part in np.split(images, range(batch, len(images), batch)):
            yield latent[part]

    node = TREE.index[child]
    return telling_cells(head.eval(), latents, LEAVES, node, number=number, candidates=200, correlation=0.8, seed=seed)


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize(("child", "leaf"), [("A/x", X), ("A/y", Y)])
def test_the_best_cell_is_the_class_s_own_sign(kind: Kind, child: str, leaf: int) -> None:
    best = found(child, kind)
    assert torch.allclose(best.vector[0], SIGN[leaf], atol=0.05)
    assert LEAVES[best.image[0]] == leaf and best.effect[0] > 3
    assert torch.equal(maps()[best.image[0]].flatten(1)[:, best.cell[0]], best.vector[0])


def test_an_inner_node_takes_cells_of_all_its_leaves() -> None:
    """Both leaves' signs tell A from B, and they differ from each other; background does not."""
    two = found("A", number=2)
    assert {int(vector.argmax()) for vector in two.vector} == {0, 1}
    assert {int(LEAVES[image]) for image in two.image} == {X, Y}
    assert two.effect[0] >= two.effect[1] > 0.5


def test_a_class_with_nothing_of_its_own_has_no_effect_to_speak_of() -> None:
    assert found("B", number=3).effect.max() < 1.5 < found("A/x").effect[0]


def test_batches_change_nothing_and_the_seed_draws_other_candidates() -> None:
    one, other = found("A", number=3, batch=1), found("A", number=3, batch=36)
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.cell, other.cell)
    np.testing.assert_allclose(one.effect, other.effect, rtol=1e-4)
    assert found("A", number=3, seed=1).image.tolist() != one.image.tolist()

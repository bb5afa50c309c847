"""Projection against an exhaustive search, in any order and batch size."""

import numpy as np
import pytest
import torch

from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.taxonomy import Taxonomy
from training.projection import find_nearest

LEAVES = ("A/x", "A/y", "B/u", "B/v", "Q")


@pytest.fixture
def problem():
    taxonomy = Taxonomy.from_paths(LEAVES)
    torch.manual_seed(0)
    head = PrototypeHead(taxonomy, prototype_children(taxonomy, "hierarchical", 3), 5)
    latent = torch.rand(23, 5, 3, 4)
    # Equal cells in several images of one class: the first image and the first cell must win whatever the order.
    latent[7] = latent[2]
    latent[12, :, 1, 1] = latent[12, :, 0, 2]
    leaves = torch.arange(23) % len(LEAVES)
    return head, latent, leaves


def exhaustive(head, latent, leaves):
    found = []
    for prototype, child in zip(head.prototypes.detach().double(), head.prototype_child.tolist(), strict=True):
        best = (np.inf, -1, -1)
        for image, leaf in enumerate(leaves.tolist()):
            if head.taxonomy.leaves_below[child, leaf]:
                for cell, vector in enumerate(latent[image].double().flatten(1).T):
                    best = min(best, (float((vector - prototype).square().sum()), image, cell))
        found.append(best)
    return found


def batches(latent, leaves, order, size):
    for start in range(0, len(order), size):
        part = torch.as_tensor(order[start : start + size])
        yield part, leaves[part], latent[part]


@pytest.mark.parametrize("size", [1, 4, 23])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_projection_finds_the_nearest_own_cell_in_any_order_and_batch_size(problem, size, seed):
    head, latent, leaves = problem
    order = np.arange(23) if seed is None else np.random.default_rng(seed).permutation(23)
    found = find_nearest(head, batches(latent, leaves, order, size))
    expected = exhaustive(head, latent, leaves)
    assert found.image.tolist() == [image for _, image, _ in expected]
    assert found.cell.tolist() == [cell for _, _, cell in expected]
    np.testing.assert_allclose(found.distance, [distance for distance, _, _ in expected], atol=1e-12)
    for number, (_, image, cell) in enumerate(expected):
        assert torch.equal(found.vector[number], latent[image].flatten(1)[:, cell])


def test_images_of_another_class_are_never_chosen(problem):
    head, latent, leaves = problem
    found = find_nearest(head, batches(latent, leaves, np.arange(23), 6))
    for child, image in zip(head.prototype_child.tolist(), found.image.tolist(), strict=True):
        assert head.taxonomy.leaves_below[child, leaves[image]]


def test_a_class_without_images_is_an_error(problem):
    head, latent, leaves = problem
    kept = (leaves != 0).nonzero()[:, 0].numpy()
    with pytest.raises(RuntimeError, match="of 'Q' has no training image"):
        find_nearest(head, batches(latent, leaves, kept, 6))

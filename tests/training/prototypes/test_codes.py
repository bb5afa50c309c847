"""Codes and the pictures nearest to prototypes by brute force, and a form for people that changes no answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import NetworkDescription, build_autoencoder
from protoserve.taxonomy import Taxonomy
from training.prototypes import codes as codes_module
from training.prototypes.codes import assigned_to_leaves, codes_of, nearest_pictures, pieces

LEAVES = ("a", "b", "c")


@pytest.fixture
def description() -> NetworkDescription:
    return NetworkDescription(
        kind="autoencoder",
        taxonomy=Taxonomy.from_paths(LEAVES).to_dict(),
        input=InputRule(height=8, width=8, resize="stretch"),
        dimensions=8,
        similarity="negative-distance",
        epsilon=0.0,
        prototype_child=[0, 0, 1, 1, 2, 2],
        channels=[4, 2],
        grey=True,
    )


@pytest.fixture
def network(description: NetworkDescription) -> PrototypeAutoencoder:
    """A random autoencoder. Most of its six prototypes have their greatest weight at another leaf than their own."""
    torch.manual_seed(0)
    built = build_autoencoder(description).eval()
    with torch.no_grad():
        built.head.prototypes.uniform_()
        built.head.weight.uniform_(-0.1, 0.1)
        for slot, leaf in enumerate((2, 1, 0, 2, 1, 0)):
            built.head.weight[0, leaf, slot] = 1.0
    return built


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), dtype=np.uint8))


def test_pieces_hold_every_picture_once(pictures: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "PIECE", 4)
    parts = list(pieces(pictures))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), pictures)


def test_a_code_is_the_flattened_map_of_its_picture(
    network: PrototypeAutoencoder, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "PIECE", 4)
    found = codes_of(network, pictures)
    assert found.shape == (11, 8)
    for code, picture in zip(found, pictures, strict=True):
        with torch.inference_mode():
            planes = picture.float().mean(2)[None, None] / 255
            torch.testing.assert_close(code, network.encoder(planes).flatten(), rtol=1e-5, atol=1e-6)


def test_the_nearest_is_found_where_single_precision_rounds_distances_alike(network: PrototypeAutoencoder) -> None:
    """The distances, about 10, differ by less than 1e-6."""
    generator = np.random.default_rng(1)
    prototypes = generator.normal(size=(6, 8)).astype(np.float32)
    codes = (generator.normal(size=8) + 1e-7 * generator.normal(size=(20, 8))).astype(np.float32)
    with torch.no_grad():
        network.head.prototypes.copy_(torch.from_numpy(prototypes))
    distances = ((prototypes[:, None].astype(np.float64) - codes.astype(np.float64)) ** 2).sum(axis=2)
    nearest, distance = nearest_pictures(network, torch.from_numpy(codes))
    assert nearest.tolist() == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(distance, distances.min(axis=1), rtol=1e-14)


def test_prototypes_are_ordered_by_the_leaf_of_their_greatest_weight(
    description: NetworkDescription, network: PrototypeAutoencoder, pictures: Tensor
) -> None:
    codes, before = codes_of(network, pictures), network.head.prototypes.detach().clone()
    ordered, assigned = assigned_to_leaves(description, network, codes)
    leaves = Taxonomy.from_paths(LEAVES).leaves
    assert ordered.prototype_child == [leaves[leaf] for leaf in (0, 0, 1, 1, 2, 2)]
    # Prototypes 2 and 5 have their greatest weight at the first leaf, 1 and 4 at the second, 0 and 3 at the third.
    assert torch.equal(assigned.head.prototypes, before[[2, 5, 1, 4, 0, 3]])
    weight = assigned.head.effective_weight()[0].detach()
    assert weight.argmax(0).tolist() == [0, 0, 1, 1, 2, 2]
    assert assigned.head.grouping.prototype_child.tolist() == ordered.prototype_child
    assert not assigned.training


def test_the_form_assigned_to_leaves_gives_every_picture_the_same_answer(
    description: NetworkDescription, network: PrototypeAutoencoder, pictures: Tensor
) -> None:
    with torch.no_grad():
        before = network(pictures).log_probability
        codes = codes_of(network, pictures)
        _, assigned = assigned_to_leaves(description, network, codes)
        after = assigned(pictures)
    torch.testing.assert_close(after.log_probability.exp(), before.exp(), atol=1e-5, rtol=1e-4)
    # The references: the mean distances to all codes, projected on the references that change no logit.
    distances = (codes.double()[:, None] - assigned.head.prototypes.double()).square().sum(2).mean(0)
    assert assigned.head.reference is not None
    free = torch.linalg.svd(assigned.head.effective_weight()[0].double())[2][2:]
    expected = free.T @ (free @ distances)
    torch.testing.assert_close(assigned.head.reference.double(), expected, rtol=1e-4, atol=1e-5)

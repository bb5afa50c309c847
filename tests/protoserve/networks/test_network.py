"""Latent maps: the range of their values, for every similarity."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from protoserve.networks.backbones import Backbone, backbone
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.networks.network import AddOn, PrototypeNetwork
from protoserve.networks.similarity import Similarity, SimilarityForm
from protoserve.taxonomy import Taxonomy


@pytest.fixture(scope="module")
def body() -> Backbone:
    torch.manual_seed(0)
    return backbone("squeezenet1_1")


def network_of(
    body: Backbone,
    form: SimilarityForm = "log1p",
    *,
    unit_length: bool = False,
    smoothing: int = 1,
    hidden: int | None = None,
) -> PrototypeNetwork:
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "Q"])
    head = PrototypeHead(
        taxonomy,
        prototype_children(taxonomy, "hierarchical", 2),
        8,
        similarity=Similarity(form),
        unit_length=unit_length,
    )
    return PrototypeNetwork(body, head, reduced=None, smoothing=smoothing, hidden=hidden).eval()


@pytest.mark.parametrize("form", ["log1p", "log-ratio"])
def test_latent_values_lie_between_0_and_1(body: Backbone, form: SimilarityForm) -> None:
    images = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    network = network_of(body, form)
    with torch.inference_mode():
        latent = network.latent(network.features(images))
    assert latent.min() > 0 and latent.max() < 1


def test_cells_of_the_cosine_have_unit_length_and_obtuse_angles_are_possible(body: Backbone) -> None:
    network = network_of(body, "cosine")
    # Pre-activations of either sign, so that cells point anywhere.
    features = 3 * torch.randn(4, body.channels, 3, 5)
    with torch.inference_mode():
        latent = network.latent(features)
        output = network.head(latent)
    torch.testing.assert_close(latent.norm(dim=1), torch.ones(4, 3, 5))
    flat = latent.movedim(1, -1).reshape(-1, 8)
    assert (flat @ flat.t()).min() < -0.2
    assert (output.similarity <= 1 + 1e-6).all() and (output.similarity >= -1 - 1e-6).all()
    torch.testing.assert_close(output.similarity, 1 - output.distance / 2)


def test_at_unit_length_only_the_direction_of_a_cell_counts(body: Backbone) -> None:
    network = network_of(body, unit_length=True)
    linear = network.add_on[1]
    assert isinstance(linear, nn.Conv2d) and linear.bias is not None
    nn.init.zeros_(linear.bias)
    features = 3 * torch.randn(4, body.channels, 3, 5)
    with torch.inference_mode():
        latent, stronger = network.latent(features), network.latent(7 * features)
        distance = network.head(latent).distance
    torch.testing.assert_close(latent.norm(dim=1), torch.ones(4, 3, 5))
    torch.testing.assert_close(latent, stronger)
    assert distance.max() <= 4 + 1e-5
    # Brute force, prototypes at unit length, too.
    prototypes = nn.functional.normalize(network.head.prototypes.detach().double(), dim=1)
    cells = latent.double().flatten(2)
    expected = ((cells[:, None] - prototypes[:, :, None]) ** 2).sum(2).amin(2)
    torch.testing.assert_close(distance.double(), expected, rtol=0, atol=1e-5)


def test_smoothing_is_the_mean_of_the_cells_around_that_lie_on_the_map(body: Backbone) -> None:
    network = network_of(body, smoothing=3)
    maps = torch.randn(2, body.channels, 4, 5)
    smoothed = network.from_maps(maps)
    for row in range(4):
        for column in range(5):
            around = maps[:, :, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            torch.testing.assert_close(smoothed[:, :, row, column], around.mean((2, 3)))


def test_a_hidden_layer_starts_as_the_linear_map_and_can_leave_it(body: Backbone) -> None:
    network = network_of(body, unit_length=True, hidden=12)
    mapping = network.add_on[1]
    assert isinstance(mapping, AddOn) and mapping.hidden.bias is not None
    features = torch.randn(3, body.channels, 4, 5)
    linear = mapping.direct(features)
    torch.testing.assert_close(mapping(features), linear)
    nn.init.ones_(mapping.bend.weight)
    # Written out cell by cell in double precision.
    cells = features.double().movedim(1, -1)
    weight, bias = mapping.hidden.weight.double()[:, :, 0, 0], mapping.hidden.bias.double()
    bent = (cells @ weight.t() + bias).clamp_min(0).sum(-1)
    torch.testing.assert_close(
        (mapping(features) - linear).double(), bent[:, None].expand(linear.shape), rtol=1e-4, atol=1e-4
    )
    assert bent.min() > 0


def test_single_cells_meet_the_same_layers_as_maps(body: Backbone) -> None:
    network = network_of(body, unit_length=True, hidden=12)
    mapping = network.add_on[1]
    assert isinstance(mapping, AddOn)
    nn.init.normal_(mapping.bend.weight)
    features = torch.randn(3, body.channels, 4, 5)
    with torch.inference_mode():
        maps, cells = network.latent(features), network.latent_of_cells(features[:, :, 2, 3])
    torch.testing.assert_close(cells, maps[:, :, 2, 3])

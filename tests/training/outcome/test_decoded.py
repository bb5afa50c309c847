"""Decoded pictures and the measures of an autoencoder, against brute force on a small random network."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import NetworkDescription, build_autoencoder
from protoserve.taxonomy import Taxonomy
from training.outcome.charts import as_png
from training.outcome.decoded import (
    CAPTION,
    GAP,
    PANEL,
    closeness,
    decoded_beside_nearest,
    drawn_to_picture,
    prototypes_figure,
    reconstruction_error,
    reconstructions_picture,
)

# Matplotlib fails on the second where it is read as a formula.
TAXONOMY = Taxonomy.from_paths(["zero", "$_{2$"])


@pytest.fixture(scope="module")
def network() -> PrototypeAutoencoder:
    torch.manual_seed(0)
    description = NetworkDescription(
        kind="autoencoder",
        taxonomy=TAXONOMY.to_dict(),
        input=InputRule(height=8, width=8, resize="stretch"),
        dimensions=8,
        similarity="negative-distance",
        epsilon=0.0,
        prototype_child=[0, 0, 1],
        channels=[4, 2],
        grey=True,
    )
    built = build_autoencoder(description).eval()
    with torch.no_grad():
        built.head.prototypes.copy_(torch.rand_like(built.head.prototypes))
    return built


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))


def test_closeness_is_relative_to_the_mean_distance_between_codes(network: PrototypeAutoencoder) -> None:
    generator = torch.Generator().manual_seed(1)
    fit, selection = torch.rand(6, 8, generator=generator), torch.rand(4, 8, generator=generator)
    prototypes = network.head.prototypes.detach()
    between = np.mean([float((one - other).square().sum()) for one in fit for other in fit])
    to_code = np.mean([min(float((prototype - code).square().sum()) for code in fit) for prototype in prototypes])
    to_prototype = np.mean(
        [min(float((code - prototype).square().sum()) for prototype in prototypes) for code in selection]
    )
    near = closeness(network, fit, selection)
    assert near.prototype_to_code == pytest.approx(to_code / between, rel=1e-5)
    assert near.code_to_prototype == pytest.approx(to_prototype / between, rel=1e-5)


@torch.inference_mode()
def test_errors_are_squared_differences_summed_over_a_picture(
    network: PrototypeAutoencoder, pictures: torch.Tensor
) -> None:
    planes = pictures.float().mean(3)[:, None] / 255.0
    redrawn = network.decode(network.encoder(planes).flatten(1))
    expected = float((redrawn - planes).square().flatten(1).sum(1).mean())
    assert reconstruction_error(network, pictures) == pytest.approx(expected, rel=1e-5)
    drawn = network.decode(network.head.prototypes)
    nearest = [min(float((prototype - picture).square().sum()) for picture in planes) for prototype in drawn]
    assert drawn_to_picture(network, pictures) == pytest.approx(np.mean(nearest), rel=1e-5)


def test_reconstructions_stand_below_their_pictures(network: PrototypeAutoencoder, pictures: torch.Tensor) -> None:
    sheet = np.asarray(Image.open(io.BytesIO(reconstructions_picture(network, pictures))))
    scale = sheet.shape[0] // 16
    assert sheet.shape == (16 * scale, 5 * 8 * scale, 3)
    grey = np.round(pictures.numpy().mean(axis=3))
    above = sheet[: 8 * scale : scale, ::scale, 0].reshape(8, 5, 8).transpose(1, 0, 2)
    assert np.abs(above - grey).max() <= 1


def test_a_prototypes_picture_shows_it_on_the_left_and_its_nearest_image_on_the_right() -> None:
    decoded, nearest = (np.full((8, 8, 3), value, dtype=np.uint8) for value in (50, 200))
    sheet = np.asarray(decoded_beside_nearest(decoded, nearest))
    assert sheet.shape == (PANEL + CAPTION, 2 * PANEL + GAP, 3)
    assert (sheet[:PANEL, :PANEL] == 50).all()
    assert (sheet[:PANEL, PANEL + GAP :] == 200).all()


def test_every_prototype_is_named_after_the_leaf_of_its_greatest_weight(network: PrototypeAutoencoder) -> None:
    drawn = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    figures: list[Figure] = []

    def draw() -> Figure:
        figures.append(prototypes_figure(network.head, drawn))
        return figures[-1]

    assert as_png(draw).startswith(b"\x89PNG")
    weight = network.head.effective_weight()[0].detach().numpy()
    labels = [TAXONOMY.names[int(network.head.grouping.member_node[0, member])] for member in weight.argmax(axis=0)]
    assert [axes.get_title().split("\n")[0] for axes in figures[0].axes] == labels

"""Tiles: a cell of the feature map is a function of its tile's pixels and of nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protoserve.errors import InputError
from protoserve.images.geometry import InputRule
from protoserve.networks.backbones import Backbone, backbone, in_tiles
from protoserve.networks.head import prototype_children
from protoserve.networks.model_file import NetworkDescription, build, load_network, save_network
from protoserve.networks.network import LinearNetwork, PrototypeNetwork
from protoserve.networks.tiles import Tiles
from protoserve.taxonomy import Taxonomy

# EfficientNet's squeeze-and-excitation pools over everything that the backbone sees.
NAMES = ("mobilenet_v2", "efficientnet_b0", "resnet18")
# Height, width, tile and step: without overlap, with it, with a step that is not a divisor of the tile.
GRIDS = [(64, 96, 32, 32), (96, 64, 64, 32), (92, 68, 44, 24)]


@pytest.fixture(scope="module", params=NAMES)
def whole(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    body = backbone(request.param)
    # Activations of an untrained network all but vanish on the way. Normalised by their own statistics, they do not.
    with torch.no_grad():
        for part in body.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.train().momentum = 1.0
        body(pictures(96, 96, 8))
    return body.eval()


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("height", "width", "tile", "step"), GRIDS)
@torch.inference_mode()
def test_a_cell_is_the_mean_feature_of_its_tile_as_a_picture_of_its_own(
    whole: Backbone, height: int, width: int, tile: int, step: int
) -> None:
    tiled = in_tiles(whole, tile, step, height, width).eval()
    images = pictures(height, width)
    cells = tiled(images)
    assert cells.shape == (2, whole.channels, (height - tile) // step + 1, (width - tile) // step + 1)
    for image in range(2):
        for row in range(cells.shape[2]):
            for column in range(cells.shape[3]):
                top, left = row * step, column * step
                crop = images[image : image + 1, :, top : top + tile, left : left + tile]
                torch.testing.assert_close(
                    cells[image, :, row, column], whole(crop)[0].mean((1, 2)), rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize(("height", "width", "tile", "step"), GRIDS)
@torch.inference_mode()
def test_pixels_outside_a_tile_change_nothing_in_its_cell(
    whole: Backbone, height: int, width: int, tile: int, step: int
) -> None:
    tiled = in_tiles(whole, tile, step, height, width).eval()
    images = pictures(height, width)
    before = tiled(images)
    for row in range(before.shape[2]):
        for column in range(before.shape[3]):
            top, left = row * step, column * step
            changed = 5 * torch.randn_like(images)
            changed[:, :, top : top + tile, left : left + tile] = images[:, :, top : top + tile, left : left + tile]
            after = tiled(changed)
            torch.testing.assert_close(after[:, :, row, column], before[:, :, row, column], rtol=1e-6, atol=1e-6)
            inside = images.clone()
            inside[:, :, top : top + 4, left : left + 4] += 5.0
            assert not torch.allclose(tiled(inside)[:, :, row, column], before[:, :, row, column], atol=1e-3)


def test_one_tile_is_the_pooled_feature_of_the_picture(whole: Backbone) -> None:
    images = pictures(64, 64)
    with torch.inference_mode():
        cell = in_tiles(whole, 64, None, 64, 64)(images)
        torch.testing.assert_close(cell[:, :, 0, 0], whole(images).mean((2, 3)))


def test_tiles_are_cut_row_by_row() -> None:
    picture = torch.arange(6 * 9).reshape(1, 1, 6, 9)
    tiles = Tiles(tile=3, step=3).cut(picture)
    assert tiles.shape == (1, 2, 3, 1, 3, 3)
    assert tiles[0, 1, 2, 0].tolist() == [[33, 34, 35], [42, 43, 44], [51, 52, 53]]
    with pytest.raises(InputError, match="tiles of 3 pixels, one every 2, do not cover pictures of 6 × 9"):
        Tiles(tile=3, step=2).cut(picture)


def test_tiles_share_the_weights_and_their_names() -> None:
    body = backbone("resnet18", stride=8)
    tiled = in_tiles(body, 32, 16, 64, 64)
    assert list(tiled.state_dict()) == list(body.state_dict())
    assert [*map(id, tiled.parameters())] == [*map(id, body.parameters())]


@pytest.mark.parametrize(
    ("name", "tile", "message"),
    [
        ("vit_b_16", 56, "backbone 'vit_b_16' can't take tiles of 56 × 56 pixels"),
        ("vgg11", 16, "backbone 'vgg11' can't take tiles of 16 × 16 pixels"),
        ("inception_v3", 28, "backbone 'inception_v3' can't take tiles of 28 × 28 pixels"),
        ("resnet18", 50, "use tiles of 32 or 56 pixels"),
    ],
)
def test_tiles_that_a_backbone_or_a_picture_does_not_fit_are_refused(name: str, tile: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        in_tiles(backbone(name), tile, None, 224, 224)


def test_a_backbone_of_fixed_size_takes_tiles_of_that_size() -> None:
    tiled = in_tiles(backbone("vit_b_32"), 224, 32, 224, 256).eval()
    with torch.inference_mode():
        assert tiled(pictures(224, 256, 1)).shape == (1, 768, 1, 2)


# ---- networks --------------------------------------------------------------------------------------------------


def described(kind: str, **options: object) -> NetworkDescription:
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "B"])
    return NetworkDescription.model_validate(
        {
            "kind": kind,
            "taxonomy": taxonomy.to_dict(),
            "input": InputRule(height=64, width=96, resize="stretch"),
            "backbone": "resnet18",
            "stride": 8,
            "dimensions": 8,
            "prototype_child": [] if kind == "linear" else prototype_children(taxonomy, "hierarchical", 2),
            **options,
        }
    )


def test_a_checkpoint_keeps_its_tiles(tmp_path: Path) -> None:
    description = described("hierarchical", tile=32, tile_step=16)
    torch.manual_seed(0)
    network = build(description).eval()
    save_network(tmp_path / "model.pt", network, description)
    found, read, _ = load_network(tmp_path / "model.pt")
    assert isinstance(found, PrototypeNetwork) and (read.tile, read.tile_step) == (32, 16)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8))
    with torch.inference_mode():
        assert found.features(images).shape[2:] == (3, 5)
        assert torch.equal(found.features(images), network.features(images))


def test_a_linear_network_pools_over_tiles() -> None:
    torch.manual_seed(0)
    network = build(described("linear", tile=32)).eval()
    assert isinstance(network, LinearNetwork)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8))
    with torch.inference_mode():
        normalised = network.normalise(images)
        tiles = [normalised[:, :, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32, 64)]
        expected = torch.stack([network.backbone.body(tile).mean((2, 3)) for tile in tiles]).mean(0)
        torch.testing.assert_close(network.features(images), expected, rtol=1e-4, atol=1e-5)


def test_descriptions_of_earlier_versions_have_no_tiles() -> None:
    earlier = described("linear").model_dump(mode="json")
    del earlier["tile"], earlier["tile_step"]
    read = NetworkDescription.model_validate(earlier)
    assert read.tile is None and build(read).backbone.tiles is None

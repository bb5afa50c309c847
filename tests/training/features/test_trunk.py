"""A backbone cut in two gives what the whole one gives, and all that learns is in the second part."""

import pytest
import torch

from protoserve.networks.backbones import backbone, in_tiles
from training.features.building import trainable_modules
from training.features.trunk import cut_at, cut_backbone

CASES = [
    ("mobilenet_v2", "features.14"),
    # In the middle of a residual block two maps would cross: the block goes to the top as a whole.
    ("mobilenet_v2", "features.14.conv.1"),
    ("resnet18", "layer3.1.conv2"),
    ("resnet18", "layer4"),
    ("shufflenet_v2_x0_5", "stage3.1"),
    ("convnext_tiny", "features.7"),
    ("timm/test_efficientnet", "blocks.2"),
    ("timm/test_resnet", "layer4"),
]


@pytest.mark.parametrize(("name", "train_from"), CASES)
def test_trunk_and_top_equal_the_backbone(name: str, train_from: str) -> None:
    torch.manual_seed(0)
    body = backbone(name).body
    cut = cut_at(body, train_from)
    assert cut is not None
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = cut.trunk(pictures)
        assert maps.ndim == 4
        assert torch.equal(cut.top(maps), body(pictures))
    used = {str(node.target) for node in cut.trunk.graph.nodes if node.op in ("call_module", "get_attr")}
    learning = trainable_modules(body, train_from)
    names = {name for name, part in body.named_modules() if any(part is one for one in learning)}
    assert used and not used & names


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_vit3"])
def test_tokens_are_cut_between_two_blocks(name: str) -> None:
    """Registers, tables of positions and the class token stay in the trunk."""
    torch.manual_seed(0)
    body = backbone(name, size=(48, 64)).body
    cut = cut_at(body, "blocks.4")
    assert cut is not None
    pictures = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        tokens = cut.trunk(pictures)
        assert tokens.ndim == 3
        assert torch.equal(cut.top(tokens), body(pictures))
    top = {str(node.target).split(".")[1] for node in cut.top.graph.nodes if str(node.target).startswith("blocks.")}
    assert min(top, key=int) == "4"


def test_trunk_and_top_share_the_weights_of_the_backbone() -> None:
    body = backbone("mobilenet_v2").body
    cut = cut_at(body, "features.17")
    assert cut is not None
    own = {id(parameter) for parameter in body.parameters()}
    assert {id(parameter) for parameter in [*cut.trunk.parameters(), *cut.top.parameters()]} <= own


def test_trunk_and_top_on_tiles_equal_the_backbone_on_tiles() -> None:
    torch.manual_seed(0)
    whole = backbone("resnet18").eval()
    tiled = in_tiles(whole, 32, 16, 64, 48).eval()
    cut = cut_backbone(tiled, "layer4")
    assert cut is not None
    pictures = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        maps = cut.trunk(pictures)
        assert maps.shape == (2, 3, 2, 256, 2, 2)
        assert torch.equal(cut.top(maps), tiled(pictures))
        untiled = cut_backbone(whole, "layer4")
        assert untiled is not None and torch.equal(untiled.top(untiled.trunk(pictures)), whole(pictures))


@pytest.mark.parametrize("train_from", [None, "features.0"])
def test_where_everything_learns_there_is_no_trunk(train_from: str | None) -> None:
    assert cut_at(backbone("mobilenet_v2").body, train_from) is None

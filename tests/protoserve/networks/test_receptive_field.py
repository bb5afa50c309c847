"""A limited receptive field: every cell sees the stated square of pixels, all of it and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from protoserve.errors import InputError
from protoserve.images.geometry import Cells, InputRule
from protoserve.networks.backbones import Backbone, backbone, with_receptive_field
from protoserve.networks.head import prototype_children
from protoserve.networks.model_file import NetworkDescription, build, load_network, save_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.networks.receptive_field import ReceptiveField
from protoserve.taxonomy import Taxonomy

# Worked by hand. ResNet-18: a convolution of 7 and a pool of 3 with stride 2 see 7 and 7 + 2 · 2 = 11 pixels, every
# further convolution of 3 at 4 pixels per cell 8 more; the paddings move the first cell's field to the left.
# MobileNetV2: 3, 3 + 2 · 2 = 7, 7 + 4 = 11 (stride 4), 19, 27 (stride 8).
BY_HAND = [
    ("resnet18", 8, 11, ReceptiveField(11, 8, -5)),
    ("resnet18", 8, 19, ReceptiveField(19, 8, -9)),
    ("resnet18", 8, 26, ReceptiveField(19, 8, -9)),
    ("resnet18", 4, 27, ReceptiveField(27, 4, -13)),
    ("mobilenet_v2", 8, 11, ReceptiveField(11, 8, -5)),
    ("vgg11_bn", 4, 10, ReceptiveField(10, 4, -3)),
    ("squeezenet1_1", 4, 15, ReceptiveField(15, 4, -4)),
]


def limited(name: str, stride: int | None, pixels: int) -> Backbone:
    torch.manual_seed(0)
    body = with_receptive_field(backbone(name, stride=stride), pixels)
    # Activations of an untrained network all but vanish on the way. Normalised by their own statistics, they do not.
    with torch.no_grad():
        for part in body.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.train().momentum = 1.0
        body(pictures())
    return body.eval()


def pictures() -> Tensor:
    return torch.randn(4, 3, 64, 96, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("name", "stride", "pixels", "field"), BY_HAND)
def test_a_cell_sees_the_square_worked_by_hand(name: str, stride: int, pixels: int, field: ReceptiveField) -> None:
    body = limited(name, stride, pixels)
    assert body.field == field
    images = pictures().requires_grad_()
    maps = body(images)
    for row, column in ((0, 0), (2, 3), (maps.shape[2] - 2, maps.shape[3] - 2)):
        [gradient] = torch.autograd.grad(maps[:, :, row, column].square().sum(), images, retain_graph=True)
        seen = gradient.abs().sum((0, 1)) > 0
        for axis, cell, length in ((seen.any(1), row, 64), (seen.any(0), column, 96)):
            places = axis.nonzero().flatten().tolist()
            start = field.start + cell * field.step
            assert (places[0], places[-1] + 1) == (max(start, 0), min(start + field.size, length))


def test_a_step_leaves_out_strides_so_that_deeper_layers_follow() -> None:
    body = with_receptive_field(backbone("resnet18", stride=32), 19, 8)
    assert body.field == ReceptiveField(19, 8, -9)
    assert body(pictures()).shape == (4, 512, 8, 12)
    with pytest.raises(InputError, match=r"that see at most 19 pixels are 8 pixels apart, not 16; choose 8"):
        with_receptive_field(backbone("resnet18", stride=8), 19, 16)


def test_fields_follow_the_arithmetic_of_araujo_et_al() -> None:
    field = ReceptiveField(1, 1, 0).through(7, 2, 3).through(3, 2, 1)
    assert field == ReceptiveField(11, 4, -5)
    assert field.through(5, 1, 2) == ReceptiveField(27, 4, -13)
    assert field.joined(ReceptiveField(19, 4, -9)) == ReceptiveField(19, 4, -9)
    assert ReceptiveField(3, 4, -5).joined(ReceptiveField(3, 4, 2)) == ReceptiveField(10, 4, -5)


def test_a_narrowed_convolution_answers_an_even_area_as_before() -> None:
    torch.manual_seed(0)
    whole = backbone("resnet18", stride=8)
    wide = whole.body.get_submodule("layer2.0.conv1")
    assert isinstance(wide, nn.Conv2d)
    even = torch.randn(1, 64, 1, 1).expand(1, 64, 9, 9)
    before = wide(even)[:, :, 2, 2]
    narrow = with_receptive_field(whole, 19).body.get_submodule("layer2.0.conv1")
    assert isinstance(narrow, nn.Conv2d) and narrow.kernel_size == (1, 1) and narrow.stride == wide.stride
    torch.testing.assert_close(narrow(even)[:, :, 2, 2], before)


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("efficientnet_b0", 35, "avgpool of 'efficientnet_b0' may look at the whole picture"),
        ("convnext_tiny", 35, "'convnext_tiny' may look at the whole picture"),
        ("resnet18", 2, "2 is smaller than the first layer of 'resnet18'"),
    ],
)
def test_a_backbone_or_a_limit_that_does_not_fit_is_refused(name: str, pixels: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_receptive_field(backbone(name), pixels)


def description() -> NetworkDescription:
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "B"])
    return NetworkDescription(
        kind="hierarchical",
        taxonomy=taxonomy.to_dict(),
        input=InputRule(height=64, width=96, resize="stretch"),
        backbone="resnet18",
        stride=8,
        receptive_field=19,
        dimensions=8,
        prototype_child=prototype_children(taxonomy, "hierarchical", 2),
    )


def test_a_checkpoint_keeps_its_receptive_field_and_boxes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(description())
    assert isinstance(network, PrototypeNetwork)
    assert network.cells(8, 12) == Cells(8, 12, tile=19, step=8, start=-9)
    save_network(tmp_path / "model.pt", network, description())
    loaded, found, _ = load_network(tmp_path / "model.pt")
    assert isinstance(loaded, PrototypeNetwork)
    assert found.receptive_field == 19
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    torch.testing.assert_close(loaded.features(images), network.eval().features(images))


def test_the_weights_of_a_run_with_the_same_field_are_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(description())
    save_network(tmp_path / "model.pt", network, description())
    torch.manual_seed(1)
    again = build(description(), weights=tmp_path)
    torch.testing.assert_close(again.backbone.state_dict(), network.backbone.state_dict())
    other = description().model_copy(update={"receptive_field": None})
    with pytest.raises(InputError, match="receptive field"):
        build(other, weights=tmp_path)

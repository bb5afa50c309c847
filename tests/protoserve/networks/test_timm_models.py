"""timm's models: their last map or their tokens as a map, their weights, and what they expect of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from protoserve.errors import InputError
from protoserve.networks.backbones import backbone, in_tiles, reference_of, statistics_of, with_receptive_field
from protoserve.networks.receptive_field import ReceptiveField

SIZE = (64, 96)
# A transformer, one with registers, rotary positions or none of class, and networks of convolutions in both layouts.
CHANNELS = {
    "test_vit": (64, 16),
    "test_vit3": (96, 16),
    "test_vit_relpos": (96, 16),
    "test_convnext": (64, 32),
    "test_efficientnet": (256, 32),
    "test_resnet": (96, 32),
    "test_mambaout": (64, 32),
}


def saved(model: torch.nn.Module, folder: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def as_map(model: Any, pictures: Tensor) -> Tensor:
    """What a model hands to its classifier, as a map, by timm's own description of its output."""
    with torch.no_grad():
        features: Tensor = model.forward_features(pictures)
    if features.ndim == 3:
        rows, columns = model.patch_embed.grid_size
        patches = features[:, model.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(len(pictures), -1, rows, columns)
    return features.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features


@pytest.mark.parametrize("name", CHANNELS)
def test_the_body_computes_what_the_classifier_reads(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sized = {"img_size": SIZE} if "vit" in name else {}
    model = timm.create_model(name, **sized).eval()
    found = backbone(f"timm/{name}", saved(model, tmp_path), size=SIZE).eval()
    pictures = torch.rand(2, 3, *SIZE)
    wanted = as_map(model, pictures)
    with torch.no_grad():
        maps = found(pictures)
    torch.testing.assert_close(maps, wanted, atol=1e-5, rtol=1e-5)
    assert (found.channels, found.stride) == CHANNELS[name] == (maps.shape[1], round(SIZE[0] / maps.shape[2]))
    assert not any(key.startswith(model.pretrained_cfg["classifier"]) for key in found.body.state_dict())


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [("test_resnet", 8, 48), ("test_efficientnet", 16, 48), ("test_mambaout", 16, 48), ("test_convnext", 4, 24)],
)
def test_a_finer_feature_map_is_taken_by_its_stride(name: str, stride: int, channels: int) -> None:
    found = backbone(f"timm/{name}", stride=stride, size=SIZE)
    whole = backbone(f"timm/{name}", size=SIZE)
    assert (found.channels, found.stride) == (channels, stride)
    assert len(list(found.parameters())) < len(list(whole.parameters()))
    with torch.no_grad():
        assert found.eval()(torch.rand(1, 3, *SIZE)).shape[2:] == (SIZE[0] // stride, SIZE[1] // stride)


def test_tables_of_positions_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = saved(timm.create_model("test_vit", img_size=96), tmp_path)
    wanted = timm.create_model(
        "test_vit",
        img_size=SIZE,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": timm.models.load_state_dict(file)},
    )
    state = backbone("timm/test_vit", file, size=SIZE).body.state_dict()
    assert state["pos_embed"].shape[1] == 1 + 4 * 6
    assert all(torch.equal(state[name], wanted.state_dict()[name]) for name in state if name in wanted.state_dict())


@pytest.mark.parametrize(
    ("name", "weights", "stride", "message"),
    [
        ("timm/test_resnett", None, None, "no timm model 'timm/test_resnett'; did you mean 'timm/test_resnet'"),
        ("timm/test_vit.r160", None, None, "neither a file nor weights of timm/test_vit; did you mean 'r160_in1k'"),
        ("timm/test_vit", "IMAGENET", None, "neither a file nor weights of timm/test_vit; it has DEFAULT, r160_in1k"),
        ("timm/test_resnet", None, 7, r"no feature map of stride 7; it has \[2, 4, 8, 16, 32\]"),
        ("timm/pit_ti_224", None, None, "has no feature map"),
        ("test_resnet", None, None, "a model of timm is called timm/test_resnet"),
    ],
)
def test_unknown_names_tags_and_strides_are_named(
    name: str, weights: str | None, stride: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        backbone(name, weights, stride)


def test_a_size_that_a_model_can_not_take_names_its_own() -> None:
    with pytest.raises(InputError, match=r"can't take pictures of 60 × 90 pixels .* those of its weights, 160 × 160"):
        backbone("timm/test_maxvit", size=(60, 90))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = saved(timm.create_model("test_resnet"), tmp_path)
    with pytest.raises(InputError, match=r"these are not weights of timm/test_vit: .* tensors are missing"):
        backbone("timm/test_vit", file, size=SIZE)


def test_weights_that_do_not_arrive_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("no connection to the hub\nmore")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", offline)
    with pytest.raises(
        InputError, match=r"'default' of timm/test_vit: can't get them \(no connection .*FILE"
    ) as raised:
        backbone("timm/test_vit", "default")
    assert "\n" not in str(raised.value)


def test_the_record_of_a_backbone_has_its_tag_and_what_its_weights_expect(tmp_path: Path) -> None:
    dino = reference_of("timm/vit_small_patch14_dinov2", "DEFAULT")
    assert (dino.tag, dino.height, dino.interpolation) == ("lvd142m", 518, "bicubic")
    assert dino.library == f"timm {timm.__version__}"
    # The weights decide, not the architecture.
    assert statistics_of("timm/vit_base_patch16_224", "augreg_in1k").mean == (0.5, 0.5, 0.5)
    assert statistics_of("timm/vit_base_patch16_224.mae").mean == (0.485, 0.456, 0.406)
    assert reference_of("timm/vit_base_patch16_224.mae", str(tmp_path)).tag is None
    assert reference_of("resnet18", "DEFAULT").tag == "DEFAULT"


def test_a_backbone_of_dinov2_gives_its_patches_without_class_token_and_registers() -> None:
    found = backbone("timm/vit_small_patch14_reg4_dinov2", size=(56, 28)).eval()
    with torch.no_grad():
        assert found(torch.rand(1, 3, 56, 28)).shape == (1, 384, 4, 2)
    assert (found.channels, found.stride) == (384, 14)


def test_tokens_of_tiles_are_averaged_into_cells() -> None:
    torch.manual_seed(0)
    tiled = in_tiles(backbone("timm/test_vit", size=(32, 32)), 32, 16, *SIZE).eval()
    pictures = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        cells = tiled(pictures)
        one = tiled.body(pictures[:, :, 16:48, 32:64]).mean((2, 3))
    assert cells.shape == (1, 64, 3, 5)
    torch.testing.assert_close(cells[:, :, 1, 2], one, atol=1e-5, rtol=1e-5)


def test_a_receptive_field_is_limited_in_convolutions_and_refused_elsewhere() -> None:
    narrow = with_receptive_field(backbone("timm/test_resnet", size=SIZE), 19)
    assert narrow.field is not None and narrow.field.size <= 19 and isinstance(narrow.field, ReceptiveField)
    assert narrow.statistics == statistics_of("timm/test_resnet")
    for name in ("timm/test_vit", "timm/tf_mobilenetv3_small_minimal_100"):
        with pytest.raises(InputError, match="may look at the whole picture"):
            with_receptive_field(backbone(name, size=SIZE), 19)

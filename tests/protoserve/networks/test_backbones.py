"""Backbones of torchvision, cut at a stride, with their channels."""

from __future__ import annotations

from http.client import RemoteDisconnected
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from protoserve.errors import InputError
from protoserve.networks.backbones import backbone


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [
        ("mobilenet_v2", 1280, 32),
        ("resnet18", 512, 32),
        ("vgg11", 512, 32),
        # Its last map before pooling are class scores, not features.
        ("squeezenet1_1", 512, 17),
    ],
)
def test_channels_and_stride_are_found(name: str, channels: int, stride: int) -> None:
    found = backbone(name)
    assert (found.channels, found.stride) == (channels, stride)
    with torch.inference_mode():
        rows, columns = found.eval()(torch.zeros(1, 3, 160, 224)).shape[2:]
    assert rows < columns


@pytest.mark.parametrize(("name", "channels", "stride"), [("maxvit_t", 512, 32), ("vit_b_32", 768, 32)])
def test_models_of_one_picture_size_give_their_last_map_or_tokens(name: str, channels: int, stride: int) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    found = backbone(name).eval()
    assert (found.channels, found.stride) == (channels, stride)
    own = {k: v for k, v in model.state_dict().items() if k in found.body.state_dict()}
    missing = found.body.load_state_dict(own, strict=False).missing_keys
    # Tables of positions that tracing made constant are the same in every instance.
    assert all(key.startswith("_tensor_constant") for key in missing)
    picture = torch.rand(2, 3, 224, 224)
    seen = []
    # What the model's own last stage hands to its classifier.
    last = model.blocks if name == "maxvit_t" else model.encoder
    handle = (last[-1] if name == "maxvit_t" else last).register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    with torch.inference_mode():
        model(picture)
        maps = found(picture)
    handle.remove()
    wanted = seen[0] if name == "maxvit_t" else seen[0][:, 1:].transpose(1, 2).reshape(2, channels, 7, 7)
    torch.testing.assert_close(maps, wanted, atol=1e-4, rtol=1e-4)


def test_the_body_computes_what_the_classifier_computes_before_pooling() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    found = backbone("resnet18")
    found.body.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc")})
    picture = torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        pooled = found.eval()(picture).mean((2, 3))
        torch.testing.assert_close(model.eval().fc(pooled), model(picture), atol=1e-5, rtol=1e-4)


def test_a_finer_feature_map_is_taken_by_its_stride() -> None:
    found = backbone("resnet18", stride=8)
    assert (found.channels, found.stride) == (128, 8)
    assert not any(name.startswith("body.layer3") for name, _ in found.named_parameters())


def test_weights_are_read_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = torchvision.models.squeezenet1_1()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found = backbone("squeezenet1_1", tmp_path / "weights.pth")
    torch.testing.assert_close(found.state_dict()["body.features.0.weight"], model.features[0].weight)


@pytest.mark.parametrize(
    ("name", "weights", "stride", "message"),
    [
        ("resnet81", None, None, "no torchvision model 'resnet81'; did you mean 'resnet"),
        ("resnet18", None, 7, r"no feature map of stride 7; it has \[2, 4, 8, 16, 32\]"),
        ("resnet18", "IMAGENET", None, "neither a file nor weights of resnet18; it has DEFAULT, IMAGENET1K_V1"),
    ],
)
def test_unknown_names_weights_and_strides_are_named(
    name: str, weights: str | None, stride: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        backbone(name, weights, stride)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x04."])
def test_a_broken_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(InputError, match="can't read the weights"):
        backbone("resnet18", tmp_path / "weights.pth")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="these are not weights of resnet18"):
        backbone("resnet18", tmp_path / "weights.pth")


@pytest.mark.parametrize("head", ["absent", "of 7 classes"])
def test_a_wrapped_file_with_another_head_gives_the_backbone_and_says_so(
    head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    model = torchvision.models.squeezenet1_1(num_classes=7)
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    if head == "absent":
        state = {key: tensor for key, tensor in state.items() if "classifier" not in key}
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": state, "epoch": 9}, file)
    found = backbone("squeezenet1_1", file)
    torch.testing.assert_close(found.state_dict()["body.features.0.weight"], model.features[0].weight)
    left = "; left out module.classifier.1.weight, module.classifier.1.bias" if head != "absent" else ""
    assert caplog.messages == [
        f"{file}: took the backbone of squeezenet1_1, found under 'state_dict' after 'module.'{left}"
    ]


def test_weights_that_lack_a_part_of_the_backbone_are_refused(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"1 of its 100 tensors are missing .*, the first 'layer3\.0\.conv1\.weight'"):
        backbone("resnet18", tmp_path / "weights.pth")
    # It is not needed above that layer.
    assert backbone("resnet18", tmp_path / "weights.pth", stride=8).channels == 128


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (URLError(OSError(-3, "Temporary failure in name resolution")), r"can't download them \(.*name resolution\)"),
        (RemoteDisconnected("closed"), r"can't download them \(closed\)"),
        (RuntimeError("invalid hash value"), r"can't download them \(invalid hash value\)"),
        (PermissionError(13, "Permission denied", "/home/x/.cache/torch"), r"can't keep them in /home/x/\.cache/torch"),
    ],
)
def test_weights_that_do_not_arrive_end_in_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=said) as raised:
        backbone("resnet18", "DEFAULT")
    assert "--weights FILE, or --weights none" in str(raised.value) and "\n" not in str(raised.value)

"""The frozen part of a network in onnxruntime: what PyTorch computes, or a clear fall back to it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from protoserve.errors import DeviceError, InputError
from protoserve.networks.backbones import backbone, in_tiles
from protoserve.networks.network import LinearNetwork
from protoserve.taxonomy import Taxonomy
from training.config import Config
from training.features.frozen import (
    TOLERANCE,
    WORTH_IMAGES,
    BackboneMaps,
    PictureFeatures,
    TopFeatures,
    TrunkMaps,
    frozen_forward,
    uses_onnxruntime,
)
from training.features.trunk import cut_backbone
from training.loop.trainer import Trainer

CPU = torch.device("cpu")
QUIET = Console(quiet=True)
PICTURES = torch.randint(0, 256, (5, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network_of(name: str, tile: int | None = None) -> LinearNetwork:
    torch.manual_seed(0)
    size = (32, 48) if tile is None else (tile, tile)
    whole = backbone(name, size=size)
    body = whole if tile is None else in_tiles(whole, tile, None, 32, 48)
    return LinearNetwork(body, Taxonomy.from_paths(("a", "b"))).eval()


@pytest.mark.parametrize(
    ("name", "tile", "train_from"),
    [
        ("shufflenet_v2_x0_5", None, "stage3"),
        ("timm/test_vit3", None, "blocks.4"),
        ("timm/test_efficientnet", 16, "blocks.2"),
    ],
)
def test_every_part_gives_what_pytorch_gives(name: str, tile: int | None, train_from: str) -> None:
    network = network_of(name, tile)
    cut = cut_backbone(network.backbone, train_from)
    assert cut is not None
    trunk = TrunkMaps(network, cut)
    with torch.inference_mode():
        parts = {
            PictureFeatures(network): PICTURES,
            BackboneMaps(network): PICTURES,
            trunk: PICTURES,
            TopFeatures(network, cut): trunk(PICTURES),
        }
        for part, batch in parts.items():
            forward = frozen_forward(part, len(batch), "onnxruntime", CPU, QUIET)
            for some in (batch, batch[:1]):
                expected = part(some)
                assert (forward(some) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_opening_a_part_changes_no_mode_of_the_network() -> None:
    network = network_of("shufflenet_v2_x0_5")
    network.dropout.train()
    frozen_forward(PictureFeatures(network), 5, "onnxruntime", CPU, QUIET)(PICTURES)
    assert network.dropout.training and not network.backbone.training


def test_auto_uses_onnxruntime_on_a_cpu_for_enough_images_of_a_convolutional_network() -> None:
    part = PictureFeatures(network_of("timm/test_resnet"))
    assert uses_onnxruntime("auto", part, WORTH_IMAGES, CPU)
    assert not uses_onnxruntime("auto", part, WORTH_IMAGES - 1, CPU)
    assert not uses_onnxruntime("torch", part, WORTH_IMAGES, CPU)
    assert not uses_onnxruntime("auto", part, WORTH_IMAGES, torch.device("cuda"))
    assert not uses_onnxruntime("auto", PictureFeatures(network_of("timm/test_vit")), WORTH_IMAGES, CPU)
    with pytest.raises(DeviceError, match="computes on the CPU, not on cuda"):
        uses_onnxruntime("onnxruntime", part, 1, torch.device("cuda"))
    assert frozen_forward(part, 1, "auto", CPU, QUIET) is part


class Drawn(nn.Conv2d):
    """Never computes the same twice."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return super().forward(pictures) + torch.rand(1)


@pytest.mark.parametrize(
    ("part", "missing", "reason"),
    [(Drawn(2, 2, 3, padding=1), None, "differ"), (nn.Conv2d(2, 2, 3, padding=1), "onnx", "not installed")],
)
def test_what_onnxruntime_can_not_compute_falls_back_and_says_so(
    part: nn.Module, missing: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    printed = io.StringIO()
    batch = torch.ones(3, 2, 4, 4)
    forward = frozen_forward(part, WORTH_IMAGES, "auto", CPU, Console(file=printed, width=200))
    assert forward(batch).shape == forward(batch).shape == (3, 2, 4, 4)
    assert printed.getvalue().count("note: PyTorch computes the features, not onnxruntime") == 1
    assert reason in printed.getvalue()
    with pytest.raises(InputError, match=f"onnxruntime can't compute them .*{reason}.* set features to auto or torch"):
        frozen_forward(part, 1, "onnxruntime", CPU, QUIET)(batch)


def test_a_run_caches_features_of_either_engine_apart(
    trainer_at: Callable[..., Trainer], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    found: dict[str, Any] = {}
    for engine in ("torch", "onnxruntime"):
        config = small_config(features=engine, data={"views": 1}, model={"reduced": None})
        trainer = trainer_at(config, tmp_path / engine, until="initialise")
        found[engine] = trainer.feed.cached("fit").batch([0, 1, 2])
    largest = found["torch"].abs().max()
    assert 0 < (found["torch"] - found["onnxruntime"]).abs().max() <= TOLERANCE * largest

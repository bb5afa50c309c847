"""Backbones of timm on the whole way: trained for an epoch, exported, gated by parity, and served without timm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from export.bundling import export_bundle
from protoserve.bundle.folder import Bundle
from protoserve.run.folder import open_run
from training.config import Config, parse_config, read_config
from training.recipes import config_file
from training.running import train

LONG = pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes a minute: make test-faults")
LEAVES = ("A/x", "A/y", "B")
SIZE = 64
SMALL: dict[str, Any] = {
    "name": "small",
    "batch": 8,
    "image": {"height": SIZE, "width": SIZE, "resize": "stretch"},
    "model": {"weights": None, "reduced": 12, "dimensions": 8, "prototypes_per_child": 2},
    "data": {"hold_out": 0.25, "views": 1},
    "finetune": {"epochs": 1},
    "warm": {"epochs": 0},
    "joint": {"epochs": 1, "project_every": 1},
    "anchored": {"epochs": 0},
    "last_layers": {"epochs": 1},
}
# What loads a bundle may import neither; it runs in a process of its own.
SERVED = """
import json, sys
import protoserve
answer = protoserve.load(sys.argv[1], device="cpu").predict(sys.argv[2])
assert not {"timm", "torch"} & set(sys.modules)
print(json.dumps(answer.path))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training pictures of each of three leaves, a colour each with noise, and three to test on."""
    folder = tmp_path_factory.mktemp("timm") / "data"
    generator = np.random.default_rng(0)
    for number, leaf in enumerate(LEAVES):
        for split, count in (("train", 10), ("test", 3)):
            (folder / split / leaf).mkdir(parents=True)
            for image in range(count):
                colour = generator.normal(0, 20, (40, 40, 3)) + 60 + 120 * np.eye(3)[number]
                picture = Image.fromarray(colour.clip(0, 255).astype(np.uint8))
                picture.save(folder / split / leaf / f"{image}.png")
    return folder


def small(name: str, **changes: Any) -> Config:
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
    content["model"]["backbone"] = f"timm/{name}"
    for section, keys in changes.items():
        content[section].update(keys)
    return parse_config(content, "test")


def exported(config: Config, data: Path, folder: Path, *targets: str) -> Bundle:
    """Train a run and export it; the gate refuses a graph that answers otherwise than the network."""
    train(config, data, folder / "run", linear=False, resume=False, device="cpu", console=Console(quiet=True))
    return export_bundle(open_run(folder / "run"), folder / "bundle", ("onnx", *targets))


@pytest.mark.parametrize(
    ("name", "train_from", "cells"),
    [
        ("test_convnext", "stages.3", 2),
        pytest.param("test_efficientnet", "conv_head", 2, marks=LONG),
        pytest.param("test_resnet", "layer4", 2, marks=LONG),
        pytest.param("test_mambaout", None, 2, marks=LONG),
    ],
)
def test_a_convolutional_backbone_is_fine_tuned_and_exported(
    name: str, train_from: str | None, cells: int, data: Path, tmp_path: Path
) -> None:
    bundle = exported(small(name, finetune={"train_from": train_from}), data, tmp_path)
    assert (bundle.manifest.graph.rows, bundle.manifest.graph.columns) == (cells, cells)
    backbone = bundle.manifest.provenance.backbone
    assert backbone is not None and (backbone.name, backbone.height) == (f"timm/{name}", 160)


def test_frozen_tokens_with_registers_by_the_shipped_recipe_are_exported_and_served_without_timm(
    data: Path, tmp_path: Path
) -> None:
    """The recipe for DINOv2 with a small transformer of the same form, because the weights are a download."""
    changes = {
        "image.height": SIZE,
        "image.width": SIZE,
        "model.backbone": "timm/test_vit3",
        "model.weights": None,
        "model.reduced": 12,
        "model.hidden": 16,
        "data.views": 1,
        "joint.epochs": 1,
        "joint.project_every": 1,
        "anchored.epochs": 1,
    }
    config = read_config(config_file("frozen-dinov2"), changes)
    bundle = exported(config, data, tmp_path, "torchscript")
    assert (bundle.manifest.graph.rows, bundle.manifest.graph.reach is not None) == (4, True)
    assert bundle.manifest.provenance.backbone is not None
    assert bundle.manifest.provenance.backbone.mean == [0.5, 0.5, 0.5]
    picture = next((data / "test" / "B").iterdir())
    command = [sys.executable, "-c", SERVED, str(bundle.directory), str(picture)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)

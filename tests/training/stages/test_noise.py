"""Pictures of noise: what they are, and that training with them leaves a network unsure of others like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from training.config import parse_config
from training.data.splits import read_splits
from training.loop.trainer import Trainer
from training.losses import noise_loss
from training.running import STAGES
from training.sections.data import LossConfig
from training.stages.noise import noise_pictures


def test_noise_is_uniform_over_all_values_and_follows_from_its_seed() -> None:
    pictures = noise_pictures(8, 32, 48, (1, 2))
    assert pictures.shape == (8, 32, 48, 3) and pictures.dtype == torch.uint8
    counts = torch.bincount(pictures.flatten().long(), minlength=256)
    expected = pictures.numel() / 256
    assert (counts > 0.5 * expected).all() and (counts < 1.5 * expected).all()
    assert torch.equal(pictures, noise_pictures(8, 32, 48, (1, 2)))
    assert not torch.equal(pictures, noise_pictures(8, 32, 48, (1, 3)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain pictures, and striped ones."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for leaf, shade in (("Plain/Dark", 40), ("Plain/Light", 200), ("Striped", 128)):
            (folder / split / leaf).mkdir(parents=True)
            for number in range(4):
                array = np.full((32, 32, 3), shade + 3 * number, dtype=np.uint8)
                if leaf == "Striped":
                    array[number :: 4 + number] = 0
                Image.fromarray(array).save(folder / split / leaf / f"{number}.png")
    return folder


def trained(data: Path, run: Path, weight: float, backbone_learning_rate: float) -> tuple[float, list[dict[str, Any]]]:
    """(divergence of noise pictures that the run has not seen, its history)"""
    model = {"backbone": "squeezenet1_1", "weights": None, "reduced": None, "dimensions": 8, "epsilon": 0.001}
    config = parse_config(
        {
            "name": "noise",
            "batch": 6,
            "image": {"height": 32, "width": 32, "resize": "stretch"},
            "model": {**model, "prototypes_per_child": 2, "dropout": 0},
            "data": {"views": 1, "hold_out": 0, "noise_share": 0.5},
            "loss": {"noise": weight},
            "warm": {"epochs": 12, "learning_rate": 0.02},
            "joint": {"epochs": 4, "learning_rate": 0.02, "backbone_learning_rate": backbone_learning_rate},
            "last_layers": {"epochs": 0},
        },
        "test",
    )
    run.mkdir()
    console = Console(quiet=True)
    trainer = Trainer(config, read_splits(config, data), run, linear=False, device=torch.device("cpu"), console=console)
    trainer.run(STAGES)
    with torch.inference_mode():
        output = trainer.prototype_network(noise_pictures(16, 32, 32, (99,)))
        divergence = float(noise_loss(trainer.prototype_network.head, output, LossConfig()))
    return divergence, trainer.state.history


@pytest.mark.parametrize("backbone_learning_rate", [0.0, 1e-5], ids=["frozen", "learning"])
def test_training_with_noise_leaves_the_network_unsure_of_noise(
    data: Path, tmp_path: Path, backbone_learning_rate: float
) -> None:
    without, plain = trained(data, tmp_path / "without", 0.0, backbone_learning_rate)
    against, history = trained(data, tmp_path / "with", 10.0, backbone_learning_rate)
    # Projection, the last step, moves prototypes to where pictures are, and gives some of it back.
    assert without > 0.05
    assert against < 0.7 * without
    assert all("noise" not in row for row in plain)
    noise = [row["noise"] for row in history if row["stage"] in ("warm", "joint")]
    assert len(noise) == 16 and noise[-1] < 0.3 * noise[0]

"""A run with the cosine as its similarity, from clusters of cells to projection and the last layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from training.config import parse_config
from training.data.splits import read_splits
from training.loop.trainer import Trainer
from training.running import STAGES


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for leaf, colour in (("Warm/Red", (220, 30, 30)), ("Warm/Yellow", (220, 220, 30)), ("Blue", (30, 30, 220))):
            (folder / split / leaf).mkdir(parents=True)
            for number in range(4):
                array = np.full((32, 32, 3), colour, dtype=np.uint8) - np.uint8(5 * number)
                array[: 8 * number] //= 2
                Image.fromarray(array).save(folder / split / leaf / f"{number}.png")
    model = {"backbone": "squeezenet1_1", "weights": None, "reduced": 16, "dimensions": 8, "similarity": "cosine"}
    config = parse_config(
        {
            "name": "cosine",
            "batch": 6,
            "image": {"height": 32, "width": 32, "resize": "stretch"},
            "model": {**model, "prototypes_per_child": 2, "dropout": 0},
            "data": {"views": 1, "hold_out": 0},
            "joint": {"epochs": 8, "project_every": 4},
            "last_layers": {"epochs": 4},
        },
        "test",
    )
    run, console = tmp_path_factory.mktemp("run"), Console(quiet=True)
    trainer = Trainer(
        config, read_splits(config, folder), run, linear=False, device=torch.device("cpu"), console=console
    )
    trainer.run(STAGES)
    return trainer


def test_it_learns_classes_of_colour(trainer: Trainer) -> None:
    # One in three by chance.
    record = trainer.state.records.last_layers
    assert record is not None and record.after.selection_leaf > 0.8


def test_prototypes_are_cells_of_their_own_class_at_a_cosine_of_one(trainer: Trainer) -> None:
    head, found = trainer.prototype_network.head, trainer.state.projection
    assert found is not None
    torch.testing.assert_close(head.prototypes.norm(dim=1), torch.ones(len(head.prototypes)))
    latent = trainer.latent(np.arange(len(trainer.splits.fit))).flatten(2)
    below = torch.from_numpy(head.taxonomy.leaves_below)
    with torch.inference_mode():
        similarity = head(latent[:, :, None]).similarity
    for prototype, (image, cell) in enumerate(zip(found.image.tolist(), found.cell.tolist(), strict=True)):
        assert below[head.grouping.prototype_child[prototype], trainer.splits.fit.leaves[image]]
        assert torch.equal(head.prototypes[prototype], latent[image, :, cell])
        assert float(similarity[image, prototype]) == pytest.approx(1.0, abs=1e-6)

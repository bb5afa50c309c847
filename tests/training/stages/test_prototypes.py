"""The stages of a prototype network: what each changes, stopping early, and a learning backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.config import Config
from training.loop.trainer import Trainer
from training.stages.prototypes import initialise, project, warm


def test_the_warm_stage_trains_add_on_layers_and_prototypes_alone(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = trainer_at(small_config(), tmp_path / "run", until="warm")
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    row = warm(trainer)
    names = {name for name, tensor in trainer.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert names and all(name.startswith(("add_on.", "head.prototypes")) for name in names)
    assert {"total", "cross_entropy", "cluster", "separation", "selection_leaf"} <= row.keys()


def test_projection_moves_every_prototype_to_the_nearest_cell_of_its_own_class(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    config = small_config(joint={"epochs": 0})
    trainer = trainer_at(config, tmp_path / "run", until="project")
    head, fit = trainer.prototype_network.head, trainer.splits.fit
    prototypes = head.prototypes.detach().clone()
    cells = trainer.latent(np.arange(len(fit))).flatten(2).double()
    row = project(trainer)
    projection = trainer.state.projection
    assert projection is not None
    for prototype, child in enumerate(head.grouping.prototype_child.tolist()):
        distance = (cells - prototypes[prototype].double()[None, :, None]).square().sum(1)
        distance[~torch.from_numpy(head.taxonomy.leaves_below[child][fit.leaves])] = torch.inf
        assert float(projection.distance[prototype]) == pytest.approx(float(distance.min()), rel=1e-9, abs=1e-12)
        image, cell = int(projection.image[prototype]), int(projection.cell[prototype])
        assert torch.equal(head.prototypes[prototype], cells[image, :, cell].float())
    assert row["mean_distance"] == pytest.approx(float(projection.distance.mean()))


def test_the_teacher_is_kept_only_for_distillation(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    cases: tuple[tuple[str, dict[str, Any], bool], ...] = (
        ("teaches", {"loss": {"distillation": 1.0}}, True),
        ("starts-only", {}, False),
        ("learns", {"loss": {"distillation": 1.0}, "joint": {"epochs": 1, "backbone_learning_rate": 1e-4}}, False),
    )
    for name, sections, stays in cases:
        config = small_config(start={"share": 0.5}, **sections)
        trainer = trainer_at(config, tmp_path / name, until="initialise")
        assert trainer.state.teacher is not None
        initialise(trainer)
        assert (trainer.state.teacher is not None) is stays, name


def changed(one: Trainer, other: Trainer) -> set[str]:
    """The parameters and statistics in which two runs' networks differ."""
    theirs = other.network.state_dict()
    return {name for name, tensor in one.network.state_dict().items() if not torch.equal(tensor, theirs[name])}


def test_training_stops_when_no_epoch_is_better_and_takes_the_best(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    # At so small a rate no epoch changes an answer: the first stays the best.
    joint = {"epochs": 9, "project_every": 2, "learning_rate": 1e-12, "patience": 3}
    config = small_config(joint=joint, last_layers={"epochs": 0})
    stopped = trainer_at(config, tmp_path / "stopped", until="finish")
    # Epochs 2, 3 and 4 are not better; the projection planned after the fourth is left out, the last one is not.
    expected = ["joint", "joint", "project", "joint", "joint", "project"]
    assert [row["stage"] for row in stopped.state.history if row["stage"] in expected] == expected
    record = stopped.state.records.joint
    assert record is not None and (record.epoch, record.epochs) == (1, 4)
    assert not [name for name in stopped.state.best if name.startswith("joint.")]
    # What is projected at the end is the first epoch's prototypes, as if nothing had come after it.
    one = small_config(joint={**joint, "epochs": 1, "patience": None}, last_layers={"epochs": 0})
    assert torch.equal(
        trainer_at(one, tmp_path / "one", until="finish").prototype_network.head.prototypes,
        stopped.prototype_network.head.prototypes,
    )


@pytest.mark.parametrize("reduced", [12, None])
def test_the_backbone_may_learn_with_the_prototypes(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path, reduced: int | None
) -> None:
    sections: dict[str, Any] = {
        "model": {"reduced": reduced},
        "finetune": {"epochs": 1, "train_from": "stage2.2", "label_smoothing": 0.1},
        "last_layers": {"epochs": 0},
    }
    rates = {"backbone_learning_rate": 1e-3, "weight_decay": 0.01}
    learning = trainer_at(small_config(**sections, joint={"epochs": 1, **rates}), tmp_path / "learning", until="finish")
    frozen = trainer_at(small_config(**sections, joint={"epochs": 1}), tmp_path / "frozen", until="finish")
    names = changed(learning, frozen)
    assert {name.split(".")[2] for name in names if name.startswith("backbone.")} == {"stage2", "stage3"}
    assert ("reduction.weight" in names) == (reduced is not None)
    # Batch normalisation keeps its statistics.
    assert not any("running" in name for name in names)
    # Each prototype is the very cell that it says it was cut from, of the backbone as it is now.
    projection, head = learning.state.projection, learning.prototype_network.head
    assert projection is not None
    latent = learning.latent(projection.image.numpy()).flatten(2)
    cells = latent[torch.arange(len(latent)), :, projection.cell]
    torch.testing.assert_close(cells, head.prototypes.detach(), rtol=0, atol=1e-5)

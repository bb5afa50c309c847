"""Whole runs, as small as can be: stopping early, a learning backbone, and what a checkpoint belongs to."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from protoserve.errors import InputError
from training.config import Config
from training.data.splits import read_splits
from training.loop.optimising import adam
from training.loop.trainer import Trainer
from training.running import STAGES


def train(config, data, run, *, linear=False, resume=False):
    """All steps of a run but the end, which scores and draws."""
    run.mkdir(exist_ok=True)
    device, console = torch.device("cpu"), Console(quiet=True)
    trainer = Trainer(config, read_splits(config, data), run, linear=linear, device=device, console=console)
    if resume:
        trainer.resume()
    trainer.run(STAGES)
    return trainer


def stages(trainer):
    return [row["stage"] for row in trainer.state.history]


def changed(one, other):
    """The parameters and statistics in which two runs' networks differ."""
    theirs = other.network.state_dict()
    return {name for name, tensor in one.network.state_dict().items() if not torch.equal(tensor, theirs[name])}


def test_training_stops_when_no_epoch_is_better_and_takes_the_best(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    # At so small a rate no epoch changes an answer: the first stays the best.
    joint = {"epochs": 9, "project_every": 2, "learning_rate": 1e-12, "patience": 3}
    config = small_config(joint=joint, last_layers={"epochs": 0})
    stopped = train(config, small_data, tmp_path / "stopped")
    # Epochs 2, 3 and 4 are not better; the projection planned after the fourth is left out, the last one is not.
    expected = ["joint", "joint", "project", "joint", "joint", "project"]
    assert [stage for stage in stages(stopped) if stage in expected] == expected
    assert stopped.state.records.joint.epoch == 1
    assert stopped.state.records.joint.epochs == 4
    assert not [name for name in stopped.state.kept if name.startswith("joint.")]
    # What is projected at the end is the first epoch's prototypes, as if nothing had come after it.
    one = small_config(joint={**joint, "epochs": 1, "patience": None}, last_layers={"epochs": 0})
    assert torch.equal(
        train(one, small_data, tmp_path / "one").prototype_network.head.prototypes,
        stopped.prototype_network.head.prototypes,
    )


@pytest.mark.parametrize("reduced", [12, None])
def test_the_backbone_may_learn_with_the_prototypes(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path, reduced: int | None
) -> None:
    sections = {
        "model": {"reduced": reduced},
        "finetune": {"epochs": 1, "train_from": "stage2.2", "label_smoothing": 0.1},
        "last_layers": {"epochs": 0},
    }
    rates = {"backbone_learning_rate": 1e-3, "weight_decay": 0.01}
    learning = train(small_config(**sections, joint={"epochs": 1, **rates}), small_data, tmp_path / "learning")
    frozen = train(small_config(**sections, joint={"epochs": 1}), small_data, tmp_path / "frozen")
    names = changed(learning, frozen)
    assert {name.split(".")[2] for name in names if name.startswith("backbone.")} == {"stage2", "stage3"}
    assert ("reduction.weight" in names) == (reduced is not None)
    # Batch normalisation keeps its statistics.
    assert not any("running" in name for name in names)
    # Each prototype is the very cell that it says it was cut from, of the backbone as it is now.
    projection, head = learning.state.projection, learning.prototype_network.head
    latent = learning.latent(projection.image.numpy()).flatten(2)
    cells = latent[torch.arange(len(latent)), :, projection.cell]
    torch.testing.assert_close(cells, head.prototypes.detach(), rtol=0, atol=1e-5)


def test_weight_decay_spares_vectors() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimiser = adam([([matrix, vector], 0.1)], weight_decay=0.5)
    (matrix.sum() * 0 + vector.sum() * 0).backward()
    optimiser.step()
    # One step without gradient: 1 − rate × decay.
    assert torch.equal(vector.detach(), torch.ones(2))
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))


def test_a_checkpoint_belongs_to_its_configuration_but_not_to_the_machine(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = tmp_path / "run"

    class Stopped(Exception):
        pass

    def stop(trainer) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, "project", stop)
        with pytest.raises(Stopped):
            train(small_config(), small_data, run)
    with pytest.raises(InputError, match=r"another config.joint.epochs \(2, now 3\)"):
        train(small_config(joint={"epochs": 3}), small_data, run, resume=True)
    elsewhere = small_config(data={"workers": 3}, compile=False)
    assert stages(train(elsewhere, small_data, run, resume=True))[-1] == "novelty"

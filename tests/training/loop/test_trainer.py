"""A whole run, as small as can be, and which runs may resume its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from protoserve.errors import InputError
from training.config import Config
from training.data.splits import read_splits
from training.loop.trainer import Trainer
from training.running import STAGES


def train(config: Config, data: Path, run: Path, *, linear: bool = False, resume: bool = False) -> Trainer:
    """All steps of a run but the end, which scores and draws."""
    run.mkdir(exist_ok=True)
    device, console = torch.device("cpu"), Console(quiet=True)
    trainer = Trainer(config, read_splits(config, data), run, linear=linear, device=device, console=console)
    if resume:
        trainer.resume()
    trainer.run(STAGES)
    return trainer


def stages(trainer: Trainer) -> list[Any]:
    return [row["stage"] for row in trainer.state.history]


def test_a_checkpoint_belongs_to_its_configuration_but_not_to_the_machine(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = tmp_path / "run"

    class Stopped(Exception):
        pass

    def stop(trainer: Trainer) -> dict[str, float]:
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, "project", stop)
        with pytest.raises(Stopped):
            train(small_config(), small_data, run)
    with pytest.raises(InputError, match=r"another config.joint.epochs \(2, now 3\)"):
        train(small_config(joint={"epochs": 3}), small_data, run, resume=True)
    elsewhere = small_config(data={"workers": 3}, compile=False)
    assert stages(train(elsewhere, small_data, run, resume=True))[-1] == "novelty"

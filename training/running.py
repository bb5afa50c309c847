"""`train` and `evaluate` as functions: what the commands call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from protoserve.device import Device
from protoserve.errors import InputError
from protoserve.files import make_folder, remove_drafts
from protoserve.run.records import Metrics
from training.config import Config
from training.data.splits import note_renamed, read_splits
from training.device import torch_device
from training.features.shared_cache import SharedCache
from training.loop.checkpoints import CHECKPOINT
from training.loop.plan import Stage
from training.loop.tensorboard import Board
from training.loop.trainer import Trainer
from training.outcome.finishing import finish, write_config
from training.processes import joined_processes
from training.stages import (
    analysis,
    anchoring,
    autoencoder,
    calibration,
    counting,
    last_layers,
    novelty_thresholds,
    plain,
    prototypes,
    pruning,
    teaching,
)

# What does each step of a run; `training.loop.plan.plan` says in which order they come. `finish` is what remains.
STAGES: dict[Stage, Callable[[Trainer], dict[str, float]]] = {
    "finetune": plain.finetune,
    "linear": plain.linear,
    "reduce": prototypes.reduce,
    "initialise": prototypes.initialise,
    "warm": prototypes.warm,
    "joint": prototypes.joint,
    "project": prototypes.project,
    "teach": teaching.teach,
    "anchor": anchoring.anchor,
    "last layers": last_layers.last_layers,
    "count": counting.count,
    "prune": pruning.prune,
    "start codes": autoencoder.start_codes,
    "autoencoder": autoencoder.train_autoencoder,
    "assign": autoencoder.assign,
    "analyse": analysis.analyse,
    "calibrate": calibration.calibrate,
    "novelty": novelty_thresholds.novelty,
}


def train(
    config: Config,
    data: Path,
    run: Path,
    *,
    linear: bool,
    resume: bool,
    device: Device,
    console: Console,
    tensorboard: bool = False,
    cache: SharedCache | None = None,
) -> Metrics | None:
    """Train a run from a data set and return its metrics; with `resume`, go on where it stopped.

    `cache` is where runs share features (see `Feed`).
    As one of several processes (`torchrun … -m training`) only the first returns metrics, the others None.
    Raises InputError when the place is taken, DeviceError when the device asked for is not there, MissingExtraError for
    `tensorboard` without it.
    """
    chosen = torch_device(device)
    with joined_processes(cuda=chosen.type == "cuda") as processes:
        if processes.count > 1 and chosen.type == "cuda":
            chosen = torch.device("cuda", processes.local_rank)
        if not processes.first:
            console = Console(quiet=True)
        _check_place(run, resume)
        if config.model.kind == "autoencoder":
            _check_autoencoder(linear, processes.count, cache)
        splits = read_splits(config, data)
        for dataset in (splits.validation, splits.test):
            if dataset is not None:
                note_renamed(dataset, console)
        make_folder(run)
        # The first process writes there; the others have looked at the place by now.
        processes.wait()
        if resume and processes.first:
            remove_drafts(run)
        trainer = Trainer(
            config, splits, run, linear=linear, device=chosen, console=console, processes=processes, cache=cache
        )
        if resume:
            trainer.resume()
            processes.wait()
        board = Board(run / "tensorboard", trainer.state.history) if tensorboard and processes.first else None
        if processes.first:
            write_config(config, run)
        trainer.run(STAGES, board)
        if not processes.first:
            return None
        trainer.continue_alone()
        return finish(trainer)


def _check_autoencoder(linear: bool, processes: int, cache: SharedCache | None) -> None:
    """Raise InputError for an option that an autoencoder has no use for."""
    if linear:
        raise InputError("--head linear compares on a backbone, and an autoencoder has none; leave the option out")
    if cache is not None:
        raise InputError("--cache shares features of a backbone, and an autoencoder has none; leave the option out")
    if processes > 1:
        raise InputError("model.kind: autoencoder: it trains in one process; start it without torchrun")


def _check_place(run: Path, resume: bool) -> None:
    """Raise InputError where no run can be started, or gone on with."""
    if (run / "model.pt").is_file():
        hint = "it is finished" if resume else "use --resume to go on with an unfinished run"
        raise InputError(f"{run}: holds a run already ({hint}); give another --run or remove it")
    if (run / CHECKPOINT).is_file() and not resume:
        raise InputError(f"{run}: holds an unfinished run; go on with --resume, or give another --run")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; give a folder for --run")

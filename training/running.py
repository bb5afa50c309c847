"""Train a run: the function behind `protoserve train`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from protoserve.device import Device
from protoserve.errors import InputError
from protoserve.files import make_folder, remove_drafts
from protoserve.networks.device import torch_device
from protoserve.run.records import Metrics
from training.config import Config
from training.data.splits import read_splits
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
    centring,
    counting,
    last_layers,
    novelty_thresholds,
    plain,
    prototypes,
    pruning,
    replacing,
    teaching,
)

# The function of each stage; `training.loop.plan.plan` gives their order. `train` itself does the last stage, `finish`.
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
    "replace": replacing.replace,
    "start codes": autoencoder.start_codes,
    "autoencoder": autoencoder.train_autoencoder,
    "assign": autoencoder.assign,
    "analyse": analysis.analyse,
    "centre": centring.centre,
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
    skip_broken: bool = False,
) -> Metrics | None:
    """Train a run from a data set and return its metrics; with `resume`, continue from its last checkpoint.

    Runs share features through `cache` (see `Feed`). With `skip_broken`, pictures that can't be read are left out.
    Under `torchrun`, the first process returns the metrics and the others return None. Raises InputError if `run` holds
    another run or `cache` is not writable, DeviceError if the device is not available, and MissingExtraError if
    `tensorboard` is not installed.
    """
    chosen = torch_device(device)
    with joined_processes(cuda=chosen.type == "cuda") as processes:
        if processes.count > 1 and chosen.type == "cuda":
            chosen = torch.device("cuda", processes.local_rank)
        if not processes.first:
            console = Console(quiet=True)
        _check_run_folder(run, resume)
        if config.model.kind == "autoencoder":
            _check_autoencoder(linear, processes.count, cache)
        splits = read_splits(config, data, skip_broken=skip_broken, console=console)
        for note in (*splits.found, *splits.notes):
            console.print(note, markup=False, soft_wrap=True)
        make_folder(run)
        if cache is not None:
            make_folder(cache.directory)
        # No process may still be checking the folder when the first one starts to write.
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
    """Raise InputError for an option that does not apply to an autoencoder."""
    if linear:
        raise InputError("--head linear compares on a backbone, and an autoencoder has none; leave the option out")
    if cache is not None:
        raise InputError("--cache shares features of a backbone, and an autoencoder has none; leave the option out")
    if processes > 1:
        raise InputError("model.kind: autoencoder: it trains in one process; start it without torchrun")


def _check_run_folder(run: Path, resume: bool) -> None:
    """Raise InputError if a run can be neither started nor resumed in this folder."""
    if (run / "model.pt").is_file():
        raise InputError(f"{run}: holds a finished run; give another --run or remove it")
    if (run / CHECKPOINT).is_file() and not resume:
        raise InputError(f"{run}: holds an unfinished run; add --resume to continue it, or give another --run")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; give a folder for --run")

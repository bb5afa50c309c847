"""`train` and `evaluate` as functions: what the commands call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from protoserve.data.dataset import Dataset, hold_out, holds_split, read_novel, read_split, read_taxonomy
from protoserve.errors import DeviceError, InputError
from protoserve.files import make_folder, remove_drafts
from protoserve.networks.model_file import load_network
from protoserve.run.folder import open_run
from protoserve.scores import scores
from protoserve.taxonomy import Taxonomy
from training.config import Config
from training.features.shared_cache import SharedCache
from training.loop.answers import answer_dataset
from training.loop.checkpoints import CHECKPOINT
from training.loop.plan import Stage
from training.loop.tensorboard import Board
from training.loop.trainer import Splits, Trainer
from training.outcome.decoded import train_autoencoder
from training.outcome.finishing import finish, write_config
from training.processes import joined_processes
from training.stages import (
    analysis,
    anchoring,
    calibration,
    counting,
    novelty,
    plain,
    prototypes,
    pruning,
    teaching,
)
from training.stages.novelty import evaluate_novelty

Device = Literal["auto", "cpu", "cuda"]
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
    "last layers": prototypes.last_layers,
    "count": counting.count,
    "prune": pruning.prune,
    "analyse": analysis.analyse,
    "calibrate": calibration.calibrate,
    "novelty": novelty.novelty,
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
) -> dict[str, Any]:
    """Train a run from a data set and return its metrics; with `resume`, go on where it stopped.

    `cache` is where runs share features (see `Feed`).
    As one of several processes (`torchrun … -m training`) only the first returns metrics, the others an empty mapping.
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
        splits = read_splits(config, data)
        for dataset in (splits.validation, splits.test):
            if dataset is not None:
                note_renamed(dataset, console)
        make_folder(run)
        # The first process writes there; the others have looked at the place by now.
        processes.wait()
        if resume and processes.first:
            remove_drafts(run)
        if config.model.kind == "autoencoder":
            if processes.count > 1:
                raise InputError("model.kind: autoencoder: it trains in one process; start it without torchrun")
            return train_autoencoder(config, splits, run, linear=linear, resume=resume, device=chosen, console=console)
        trainer = Trainer(
            config, splits, run, linear=linear, device=chosen, console=console, processes=processes, cache=cache
        )
        if resume:
            trainer.resume()
            processes.wait()
        board = Board(run / "tensorboard", trainer.state.history) if tensorboard and processes.first else None
        if processes.first:
            write_config(trainer)
        trainer.run(STAGES, board)
        if not processes.first:
            return {}
        trainer.go_on_alone()
        return finish(trainer)


def _check_place(run: Path, resume: bool) -> None:
    """Raise InputError where no run can be started, or gone on with."""
    if (run / "model.pt").is_file():
        hint = "it is finished" if resume else "use --resume to go on with an unfinished run"
        raise InputError(f"{run}: holds a run already ({hint}); give another --run or remove it")
    if (run / CHECKPOINT).is_file() and not resume:
        raise InputError(f"{run}: holds an unfinished run; go on with --resume, or give another --run")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; give a folder for --run")


def read_splits(config: Config, data: Path) -> Splits:
    """The parts of a data set: train is split into what is learned from and what is held out for selection."""
    whole = read_taxonomy(data)
    taxonomy = whole.without(config.data.leave_out) if config.data.leave_out else whole
    left_out = {whole.names[leaf]: folder for leaf, folder in zip(whole.leaves, whole.folders, strict=True)}
    left_out = {leaf: left_out[leaf] for leaf in config.data.leave_out}
    everything = read_split(data, "train", taxonomy, left_out=left_out, every_leaf=True)
    fit, held = hold_out(everything, config.data.hold_out, config.data_seed)
    has_validation, has_test = holds_split(data, "val"), holds_split(data, "test")
    if not has_validation and not len(held):
        raise InputError(f"{data}: no val split and data.hold_out is 0; nothing to select on: set data.hold_out to 0.1")
    validation = read_split(data, "val", taxonomy, left_out=left_out) if has_validation else held
    selection = held.joined(validation) if has_validation and len(held) else validation
    test = read_split(data, "test", taxonomy, left_out=left_out) if has_test else None
    return Splits(fit, selection, validation, test, everything.fingerprint(), left_out)


def evaluate(
    run: Path, data: Path, split: str, *, novel: Path | None = None, device: Device, console: Console
) -> dict[str, Any]:
    """Score a finished run's network on one split; `seconds` is the time it took.

    With `novel`, a folder with images of classes that the run does not know (see `read_novel`), the document gets
    `novel`: see `training.stages.novelty.novelty_report`.
    """
    chosen = torch_device(device)
    opened = open_run(run)
    network, description, _ = load_network(opened.model)
    taxonomy = Taxonomy.from_dict(description.taxonomy)
    left_out = opened.provenance().left_out
    dataset = read_split(data, split, taxonomy, left_out=left_out)
    note_renamed(dataset, console)
    unknown = None if novel is None else read_novel(novel, split, taxonomy, left_out)
    began = time.perf_counter()
    network = network.to(chosen)
    answers = answer_dataset(network, dataset, description.input, chosen, console)
    found = scores(answers.log_probability, dataset.leaves, taxonomy)
    if unknown is not None:
        recorded = opened.metrics().novelty
        thresholds = None if recorded is None else recorded.record()
        found["novel"] = evaluate_novelty(
            network, answers, dataset, unknown, thresholds, description.input, chosen, console
        )
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def note_renamed(dataset: Dataset, console: Console) -> None:
    """Say which folders of a split were read as a leaf of another path."""
    for folder, leaf in dataset.renamed:
        console.print(f"note: {dataset.split}/{folder} is read as the leaf {leaf}", markup=False, soft_wrap=True)


def torch_device(device: Device) -> torch.device:
    """`auto` is a GPU where torch sees one; asked for `cuda` and none there is an error. A GPU is told to compute
    float32 in full: by default torch lets convolutions round to 10 bits there, and prototypes would not be the cells
    that the exported graph finds."""
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device; use --device cpu or install a driver")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")

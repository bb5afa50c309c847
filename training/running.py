"""`train` and `evaluate` as functions: what the commands call."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from protoserve.dataset import Dataset, hold_out, read_split, read_taxonomy
from protoserve.errors import DeviceError, InputError
from protoserve.networks.checkpoint import load_network
from protoserve.run import make_folder, open_run
from protoserve.taxonomy import Taxonomy
from training.config import Config
from training.finishing import finish, write_config
from training.scoring import score_network
from training.trainer import CHECKPOINT, Splits, Trainer

Device = Literal["auto", "cpu", "cuda"]


def train(
    config: Config, data: Path, run: Path, *, linear: bool, resume: bool, device: Device, console: Console
) -> dict[str, Any]:
    """Train a run from a data set and return its metrics; with `resume`, go on where it stopped.

    Raises InputError when the place is taken, DeviceError when the device asked for is not there.
    """
    chosen = torch_device(device)
    if (run / "model.pt").is_file():
        hint = "it is finished" if resume else "use --resume to go on with an unfinished run"
        raise InputError(f"{run}: holds a run already ({hint}); give another --run or remove it")
    if (run / CHECKPOINT).is_file() and not resume:
        raise InputError(f"{run}: holds an unfinished run; go on with --resume, or give another --run")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; give a folder for --run")
    splits = read_splits(config, data)
    for dataset in (splits.validation, splits.test):
        if dataset is not None:
            note_renamed(dataset, console)
    make_folder(run)
    trainer = Trainer(config, splits, run, linear=linear, device=chosen, console=console)
    if resume:
        trainer.resume()
    write_config(trainer)
    trainer.run()
    return finish(trainer)


def read_splits(config: Config, data: Path) -> Splits:
    """The parts of a data set: train is split into what is learned from and what is held out for selection."""
    taxonomy = read_taxonomy(data)
    everything = read_split(data, "train", taxonomy, every_leaf=True)
    fit, held = hold_out(everything, config.data.hold_out, config.seed)
    has_validation, has_test = (data / "val").is_dir(), (data / "test").is_dir()
    if not has_validation and not len(held):
        raise InputError(f"{data}: no val split and data.hold_out is 0; nothing to select on: set data.hold_out to 0.1")
    validation = read_split(data, "val", taxonomy) if has_validation else held
    selection = held.joined(validation) if has_validation and len(held) else validation
    test = read_split(data, "test", taxonomy) if has_test else None
    return Splits(fit, selection, validation, test, everything.fingerprint())


def evaluate(run: Path, data: Path, split: str, *, device: Device, console: Console) -> dict[str, Any]:
    """Score a finished run's network on one split; `seconds` is the time it took."""
    chosen = torch_device(device)
    network, description, _ = load_network(open_run(run).model)
    dataset = read_split(data, split, Taxonomy.from_dict(description.taxonomy))
    note_renamed(dataset, console)
    began = time.perf_counter()
    found = score_network(network.to(chosen), dataset, description.input, chosen, console)
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def note_renamed(dataset: Dataset, console: Console) -> None:
    """Say which folders of a split were read as a leaf of another path."""
    for folder, leaf in dataset.renamed:
        console.print(f"note: {dataset.split}/{folder} is read as the leaf {leaf}", markup=False, soft_wrap=True)


def torch_device(device: Device) -> torch.device:
    """`auto` is a GPU where torch sees one; asked for `cuda` and none there is an error."""
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device; use --device cpu or install a driver")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")

"""The parts of a data set that a run trains on, selects on and is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from protoserve.data.dataset import Dataset, hold_out, holds_split, read_split, read_taxonomy
from protoserve.errors import InputError
from training.config import Config


@dataclass(frozen=True)
class Splits:
    """The parts of a data set.

    The run trains on `fit` and chooses weights on `selection`: images held out of train, together with val if there is
    one. `validation` and `test` are scored once, at the end. `left_out` maps the leaves of `data.leave_out` to their
    folders.
    """

    fit: Dataset
    selection: Dataset
    validation: Dataset
    test: Dataset | None
    fingerprint: str
    left_out: Mapping[str, str] = field(default_factory=dict)


def read_splits(config: Config, data: Path) -> Splits:
    """Read a data set and hold out a part of train for selection.

    Raises InputError if there is nothing to select on.
    """
    whole = read_taxonomy(data)
    taxonomy = whole.without(config.data.leave_out) if config.data.leave_out else whole
    left_out = {whole.names[leaf]: folder for leaf, folder in zip(whole.leaves, whole.folders, strict=True)}
    left_out = {leaf: left_out[leaf] for leaf in config.data.leave_out}
    everything = read_split(data, "train", taxonomy, left_out=left_out, every_leaf=True)
    fit, held = hold_out(everything, config.data.hold_out, config.data_seed)
    has_validation, has_test = holds_split(data, "val"), holds_split(data, "test")
    if not has_validation and not len(held):
        raise InputError(f"{data}: no val split and data.hold_out is 0: nothing to select on; set data.hold_out to 0.1")
    validation = read_split(data, "val", taxonomy, left_out=left_out) if has_validation else held
    selection = held.joined(validation) if has_validation and len(held) else validation
    test = read_split(data, "test", taxonomy, left_out=left_out) if has_test else None
    return Splits(fit, selection, validation, test, everything.fingerprint(), left_out)


def note_renamed(dataset: Dataset, console: Console) -> None:
    """Print which folders of a split were read as a leaf with another path."""
    for folder, leaf in dataset.renamed:
        console.print(f"note: {dataset.split}/{folder} is read as the leaf {leaf}", markup=False, soft_wrap=True)

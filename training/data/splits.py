"""The parts of a data set that a run trains on, selects on and is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from protoserve.data.checking import broken_pictures, copies, copies_note, refuse_broken, under_two_leaves
from protoserve.data.dataset import (
    Dataset,
    held_out_share,
    hold_out,
    holds_split,
    read_inner,
    read_split,
    read_taxonomy,
)
from protoserve.data.folders import PassedOver
from protoserve.errors import InputError, TaxonomyError
from protoserve.names import normal
from protoserve.taxonomy import Taxonomy
from training.config import Config
from training.progress import tracked

# Below this number of training pictures, a class is likely to be learned badly.
FEW_PICTURES: Final = 10


@dataclass(frozen=True)
class InnerPictures:
    """How many pictures of train are labelled only down to an inner node, and their fingerprint."""

    images: int
    fingerprint: str


@dataclass(frozen=True)
class Splits:
    """The parts of a data set.

    The run trains on `fit` and chooses weights on `selection`: images held out of train, together with val if there is
    one. At the end of `fit` are those of train that are labelled only down to an inner node, which `inner` counts; None
    without any. `fingerprint` is that of all others of train. `validation` and `test` are scored once, at the end.
    `left_out` maps the leaves of `data.leave_out` to their folders. `broken` are the images left out because they can't
    be read. `passed_over` counts by split and reason the files that are not images, `copies` by split the images that
    are in train, too, and as `two_classes` those of train that are under two leaves. `notes` say all this in words;
    `found` says how many pictures there are to learn from, and which classes have few.
    """

    fit: Dataset
    selection: Dataset
    validation: Dataset
    test: Dataset | None
    fingerprint: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    passed_over: Mapping[str, PassedOver] = field(default_factory=dict)
    copies: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    inner: InnerPictures | None = None


def read_splits(config: Config, data: Path, *, skip_broken: bool = False, console: Console | None = None) -> Splits:
    """Read a data set, check every picture's header, and hold out a part of train for selection.

    Raises InputError if there is nothing to select on, and for pictures that can't be read; with `skip_broken`, those
    are left out. Shows progress on `console`.
    """
    whole = read_taxonomy(data)
    leave_out = [normal(leaf) for leaf in config.data.leave_out]
    taxonomy = whole.without(leave_out) if leave_out else whole
    left_out = {whole.names[leaf]: folder for leaf, folder in zip(whole.leaves, whole.folders, strict=True)}
    left_out = {leaf: left_out[leaf] for leaf in leave_out}
    read = {"train": read_split(data, "train", taxonomy, left_out=left_out, every_leaf=True)}
    for split in ("val", "test"):
        if holds_split(data, split):
            read[split] = read_split(data, split, taxonomy, left_out=left_out)
    above = None
    # Where all leaves compete at once, no prototype and no probability belongs to an inner node.
    if config.model.kind == "hierarchical" and "inner" in read["train"].passed_over:
        above = read_inner(data, "train", taxonomy, left_out=left_out)
        read["train"] = read["train"].not_passing_over("inner")
    checked = read if above is None else {**read, "inner": above}
    broken = _broken(checked, console or Console(quiet=True))
    if not skip_broken:
        refuse_broken(broken)
    if broken:
        read = {split: dataset.without(broken) for split, dataset in read.items()}
        _check_left(read)
        above = None if above is None else above.without(broken)
    everything, notes = read["train"], [note for dataset in read.values() for note in dataset.notes()]
    found = {split: copies(everything, read[split]) for split in read if split != "train"}
    notes += [copies_note(pairs, f"{split} are also in train") for split, pairs in found.items() if pairs]
    if doubtful := under_two_leaves(everything):
        notes.append(copies_note(doubtful, "train are under two classes"))
    counts = {split: len(pairs) for split, pairs in found.items() if pairs}
    share = held_out_share(config.data.hold_out, has_val="val" in read)
    fit, held = hold_out(everything, share, config.data_seed)
    validation = read.get("val", held)
    if not len(validation):
        raise InputError(f"{data}: no val split and data.hold_out is 0: nothing to select on; set data.hold_out to 0.1")
    inner = None if above is None else InnerPictures(len(above), above.fingerprint())
    return Splits(
        fit if above is None else fit.joined(above),
        selection=held.joined(validation) if "val" in read and len(held) else validation,
        validation=validation,
        test=read.get("test"),
        fingerprint=everything.fingerprint(),
        left_out=left_out,
        broken=tuple(broken),
        passed_over={split: dataset.passed_over for split, dataset in read.items()},
        copies={**counts, **({"two_classes": len(doubtful)} if doubtful else {})},
        notes=tuple(notes),
        found=(*_found(read, fit, held, taxonomy), *_found_above(above)),
        inner=inner,
    )


def _found(read: Mapping[str, Dataset], fit: Dataset, held: Dataset, taxonomy: Taxonomy) -> list[str]:
    """Say what the data set holds, and name the leaves with fewer than `FEW_PICTURES` to learn from."""
    counts = np.bincount(fit.leaves, minlength=len(taxonomy.leaves))
    levels = "1 level" if taxonomy.depth == 1 else f"{taxonomy.depth} levels"
    sizes = ", ".join(f"{len(dataset):,} {split}" for split, dataset in read.items())
    spread = f"{counts.min()} to {counts.max()} a class, half of the classes {int(np.median(counts))} or fewer"
    each = f"{counts.min()} a class" if counts.min() == counts.max() else spread
    lines = [f"{len(taxonomy.leaves)} classes on {levels}; pictures: {sizes}; to learn from, {each}"]
    if len(held):
        lines.append(f"held out of train to select on (data.hold_out): {len(held):,} pictures")
    few = [
        f"{taxonomy.names[taxonomy.leaves[leaf]]} ({counts[leaf]})" for leaf in np.flatnonzero(counts < FEW_PICTURES)
    ]
    if few:
        shown = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        lines.append(f"warning: fewer than {FEW_PICTURES} pictures to learn from: {shown}; add some")
    return lines


def _found_above(above: Dataset | None) -> list[str]:
    """Say how many pictures are labelled only down to an inner node, and which nodes these are."""
    if above is None or not len(above):
        return []
    taxonomy = above.taxonomy
    counts = np.bincount(above.leaves, minlength=len(taxonomy.label_nodes))
    told = [f"{taxonomy.names[taxonomy.label_nodes[label]]} ({counts[label]})" for label in np.flatnonzero(counts)]
    shown = ", ".join(told[:5]) + (f" and {len(told) - 5} more" if len(told) > 5 else "")
    count = "1 picture of train is" if len(above) == 1 else f"{len(above):,} pictures of train are"
    return [f"{count} labelled only down to an inner node, and learned from down to there: {shown}"]


def _broken(read: Mapping[str, Dataset], console: Console) -> dict[str, str]:
    """The pictures of all splits that can't be read, with reasons."""
    broken: dict[str, str] = {}
    with tracked(console, "reading headers", sum(map(len, read.values()))) as advance:
        for dataset in read.values():
            broken |= broken_pictures(dataset, advance)
    return broken


def _check_left(read: Mapping[str, Dataset]) -> None:
    """Raise an error if leaving out broken pictures empties a split, or a leaf of train."""
    for split, dataset in read.items():
        if not len(dataset):
            raise InputError(f"{dataset.root}: none of the pictures of {split!r} can be read; mend them")
    train = read["train"]
    if empty := sorted(set(range(len(train.taxonomy.leaves))) - set(train.leaves.tolist())):
        name = train.taxonomy.names[train.taxonomy.leaves[empty[0]]]
        raise TaxonomyError(f"leaf {name!r} has no picture that can be read; mend them or leave the class out")

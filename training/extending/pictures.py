"""The pictures behind an extension: those that the run learned from, and those of its new classes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from protoserve.data.checking import copies, copies_note, without_broken
from protoserve.data.dataset import Dataset, held_out_share, hold_out, holds_split, read_split
from protoserve.data.folders import check_utf8, find_pictures, told
from protoserve.data.tables import is_table, read_table
from protoserve.errors import InputError
from protoserve.names import normal
from protoserve.run.provenance import Provenance
from protoserve.run.similarities import KeptImages, KeptSimilarities
from protoserve.taxonomy import Taxonomy
from training.config import Config
from training.data.splits import Splits, read_splits
from training.extending.changes import ChangedTree
from training.progress import tracked

# The folder of a run that holds the pictures of the classes added to it.
ADDED: Final = "added"


def learned_pictures(
    run: Path, data: Path, taxonomy: Taxonomy, kept: KeptSimilarities | None, config: Config, console: Console
) -> tuple[Dataset, Dataset]:
    """Find the fit and selection images of a finished run below `data`, the data set that it learned from.

    They are the images that the run's `similarities.npz` names. A run without it splits its data set again. Raises
    InputError if an image is not there.
    """
    if kept is None:
        splits = read_splits(config, data, skip_broken=True, console=console)
        if splits.fit.taxonomy != taxonomy:
            raise InputError(f"{data}: its classes are not those of {run}; give the data set that it learned from")
        # What changes the classes learns from pictures that are labelled down to a leaf.
        return splits.fit.subset(np.flatnonzero(splits.fit.to_leaf)), splits.selection
    root = read_table(data).root if is_table(data) else data
    return (
        _named(run, root, "train", kept.fit, taxonomy),
        _named(run, root, "selection", kept.selection, taxonomy),
    )


def _named(run: Path, root: Path, split: str, part: KeptImages, taxonomy: Taxonomy) -> Dataset:
    elsewhere = {image: run / image for image in part.images if image.startswith(f"{ADDED}/")}
    dataset = Dataset(root, split, taxonomy, part.images, part.leaves, elsewhere=elsewhere)
    for index in range(len(dataset)):
        if not dataset.file(index).is_file():
            raise InputError(
                f"{dataset.file(index)}: no such picture, but {run} learned from it; give the run's own data set "
                "to --data"
            )
    return dataset


def remapped(dataset: Dataset, tree: ChangedTree) -> Dataset:
    """Return the images of the classes that stay, under the changed tree."""
    leaves = tree.leaf_of[dataset.leaves]
    stay = dataset.subset(np.flatnonzero(leaves >= 0))
    return replace(stay, taxonomy=tree.taxonomy, leaves=leaves[leaves >= 0], renamed=())


def new_pictures(
    added: Mapping[str, Path],
    tree: ChangedTree,
    root: Path,
    config: Config,
    *,
    has_val: bool,
    skip_broken: bool,
    console: Console,
) -> tuple[Dataset, Dataset]:
    """Read the pictures of new classes, and hold out as many for selection as training would (`data.hold_out`, for a
    data set that `has_val`).

    Each image is named `added/CLASS/FILE`, where the new run keeps it. Raises InputError for a folder that does not
    exist or holds no pictures, and for pictures that can't be read, unless `skip_broken`.
    """
    taxonomy, images, leaves, elsewhere = tree.taxonomy, [], [], {}
    place = {node: leaf for leaf, node in enumerate(taxonomy.leaves)}
    for node, folder in added.items():
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the folder with the pictures of {node!r}")
        found = find_pictures(folder)
        check_utf8(found.files, folder)
        if not found.files:
            others = told(found.passed_over)
            raise InputError(f"{folder}: holds no pictures{f' ({others})' if others else ''}; add some of {node!r}")
        if found.passed_over:
            console.print(f"note: {folder}: {told(found.passed_over)}", markup=False, soft_wrap=True)
        for file in found.files:
            image = f"{ADDED}/{node}/{normal(file.relative_to(folder).as_posix())}"
            images.append(image)
            leaves.append(place[taxonomy.index[node]])
            elsewhere[image] = file
    everything = Dataset(root, ADDED, taxonomy, tuple(images), np.array(leaves, dtype=np.int64), elsewhere=elsewhere)
    with tracked(console, "reading headers", len(everything)) as advance:
        whole, broken = without_broken(everything, skip=skip_broken, advance=advance) if images else (everything, ())
    for node in added:
        if not (whole.leaves == place[taxonomy.index[node]]).any():
            raise InputError(f"{added[node]}: none of its {len(broken)} pictures can be read; mend them")
    share = held_out_share(config.data.hold_out, has_val=has_val)
    return hold_out(whole, share, config.data_seed)


def copies_among(old: Dataset, new: Dataset, console: Console) -> None:
    """Warn of new pictures that the run has learned already under another class."""
    if len(new) and (pairs := copies(old, new)):
        console.print(copies_note(pairs, "the new classes are also in train"), markup=False, soft_wrap=True)


def changed_splits(
    data: Path,
    fit: Dataset,
    selection: Dataset,
    old: Taxonomy,
    tree: ChangedTree,
    provenance: Provenance,
) -> Splits:
    """Arrange the splits of the changed run. `fit` and `selection` hold the images of old and new classes, `old` is the
    tree before.

    Validation and test are those of the data set. Its images of new classes are not scored: they are no part of what
    the run was given.
    """
    scored: dict[str, Dataset] = {}
    for split in ("val", "test"):
        if holds_split(data, split):
            read = read_split(data, split, old, left_out=provenance.left_out).without(provenance.broken)
            scored[split] = remapped(read, tree)
    return Splits(
        fit,
        selection=selection,
        validation=scored.get("val", selection),
        test=scored.get("test"),
        fingerprint="" if provenance.data is None else provenance.data.fingerprint,
        left_out=provenance.left_out,
        broken=tuple(provenance.broken),
        passed_over=provenance.passed_over,
        copies=provenance.copies,
    )


def keep_pictures(dataset: Dataset, directory: Path) -> None:
    """Copy the pictures of added classes into a run's folder, so that it can be extended again."""
    for image in dataset.images:
        if image.startswith(f"{ADDED}/"):
            target = directory / image
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.elsewhere[image], target)

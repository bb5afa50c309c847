"""Change the classes of a finished run: the function behind `protoserve extend`.

Prototypes are cells, so those of a new class are cut from its pictures; the backbone and all other prototypes stay. The
last layers beside and above the change are fitted again to similarities, a convex problem. What depends on the classes
follows by the functions of the stages: usual similarities, temperatures, thresholds, nearest patches, scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from protoserve.account import account_name
from protoserve.data.dataset import Dataset, holds_split
from protoserve.device import Device
from protoserve.errors import InputError
from protoserve.files import new_folder
from protoserve.names import visible
from protoserve.networks.device import torch_device
from protoserve.run.provenance import ClassChange, Provenance
from protoserve.run.similarities import read_similarities
from protoserve.taxonomy import Taxonomy, competing_groups
from training.extending.carrying import CarriedHead, carried_head, new_prototypes
from training.extending.changes import ChangedTree, Changes, changed_tree
from training.extending.cost import Cost, refuse_loss
from training.extending.finished import FinishedRun, read_finished
from training.extending.fitting import Fitted, fitted_head
from training.extending.measuring import Stopwatch
from training.extending.outcome import write_changed_run
from training.extending.pictures import copies_among, learned_pictures, new_pictures
from training.extending.renaming import write_renamed_run
from training.features.shared_cache import SharedCache

# Points of accuracy, per level, that a change may cost the old classes on the selection images.
TOLERANCE = 0.5


@dataclass(frozen=True)
class Extension:
    """What a change did: its records, what it cost the old classes by level (on `selection` images), and the seconds
    that it took, on features and beside them."""

    changes: tuple[ClassChange, ...]
    cost: Mapping[str, Cost]
    selection: int
    feature_seconds: float
    seconds: float

    def document(self) -> dict[str, Any]:
        """Return the content as JSON."""
        return {
            "changes": [change.model_dump() for change in self.changes],
            "cost": {level: asdict(cost) | {"points": cost.points} for level, cost in self.cost.items()},
            "selection": self.selection,
            "feature_seconds": round(self.feature_seconds, 2),
            "seconds": round(self.seconds, 2),
        }


def extend(
    run: Path,
    changes: Changes,
    data: Path | None,
    output: Path,
    *,
    tolerance: float = TOLERANCE,
    refit: bool = True,
    cache: SharedCache | None = None,
    skip_broken: bool = False,
    device: Device = "auto",
    console: Console,
) -> Extension:
    """Write the run `output` with other classes than `run`, which stays as it is.

    `data` is the data set that the run learned from; only renaming does without it. Without `refit`, last layers keep
    their weights, and new ones their start.

    Raises InputError for a run or a change that does not fit, if `output` exists, and if the old classes lose more than
    `tolerance` points of accuracy at a level; then nothing is written.
    """
    watch = Stopwatch()
    finished = read_finished(run)
    tree = changed_tree(finished.taxonomy, changes)
    with new_folder(output, marker="model.pt", overwrite=False) as draft:
        if changes.only_names:
            records = _records(finished, changes, {}, {})
            write_renamed_run(finished.run, draft, tree.taxonomy, _after(finished, tree, changes, records))
            return Extension(records, {}, 0, 0.0, watch.beside_features())
        if data is None:
            raise InputError(
                f"{run}: give --data, the data set that it learned from: new prototypes and last layers are compared "
                "with its pictures (only --rename does without)"
            )
        place = torch_device(device)
        kept = read_similarities(run, len(finished.sources))
        fit, selection = learned_pictures(run, data, finished.taxonomy, kept, finished.config, console)
        new = new_pictures(
            changes.added,
            tree,
            fit.root,
            finished.config,
            has_val=holds_split(data, "val"),
            skip_broken=skip_broken,
            console=console,
        )
        copies_among(fit, new[0], console)
        head = finished.network.head
        orphaned = _without_source(finished, fit, tree)
        needed = new_prototypes(head, tree, finished.config.model.prototypes_per_child, orphaned)
        carried = carried_head(head, tree, needed, orphaned)
        fitted = fitted_head(
            finished.network,
            carried,
            tree,
            (fit, selection),
            new,
            kept,
            finished.config,
            groups_to_fit(carried, tree, changes) if refit else (),
            min(tolerance, TOLERANCE),
            directory=draft / "cache",
            device=place,
            console=console,
            cache=cache,
            watch=watch,
        )
        cost = fitted.old_images.cost(carried.head)
        refuse_loss(cost, tolerance, len(fitted.old_images.leaves))
        records = _records(finished, changes, _cut_from(fitted, tree.taxonomy), _pictures(new, tree.taxonomy))
        provenance = _after(finished, tree, changes, records)
        write_changed_run(finished, carried, tree, fitted, data, provenance, draft, place, console, watch)
        return Extension(records, cost, len(fitted.old_images.leaves), watch.features, watch.beside_features())


def groups_to_fit(carried: CarriedHead, tree: ChangedTree, changes: Changes) -> tuple[int, ...]:
    """The groups beside the change, and those above every new class."""
    groups = competing_groups(tree.taxonomy, carried.head.kind)
    above = set()
    for node in changes.added:
        path = set(tree.taxonomy.path_at_level[tree.taxonomy.index[node]].tolist())
        above |= {number for number, group in enumerate(groups) if path.intersection(group.children)}
    return tuple(sorted(above.union(carried.changed)))


def _without_source(finished: FinishedRun, fit: Dataset, tree: ChangedTree) -> frozenset[int]:
    """The prototypes that were cut from pictures of removed classes."""
    gone = tree.leaf_of[fit.leaves] < 0
    images = {image for image, removed in zip(fit.images, gone.tolist(), strict=True) if removed}
    return frozenset(number for number, source in enumerate(finished.sources) if source.image in images)


def _cut_from(fitted: Fitted, taxonomy: Taxonomy) -> dict[str, int]:
    """How many new prototypes were cut from the pictures of each leaf, beside it and above it."""
    counts = np.bincount(fitted.fit.leaves[fitted.cells.image.numpy()], minlength=len(taxonomy.leaves)).tolist()
    return {taxonomy.names[node]: count for node, count in zip(taxonomy.leaves, counts, strict=True)}


def _pictures(new: tuple[Dataset, Dataset], taxonomy: Taxonomy) -> dict[str, tuple[int, int]]:
    """How many pictures each new leaf has to fit and to select."""
    fit, held = (np.bincount(part.leaves, minlength=len(taxonomy.leaves)).tolist() for part in new)
    names = [taxonomy.names[leaf] for leaf in taxonomy.leaves]
    return {name: (a, b) for name, a, b in zip(names, fit, held, strict=True) if a + b}


def _records(
    finished: FinishedRun, changes: Changes, prototypes: Mapping[str, int], pictures: Mapping[str, tuple[int, int]]
) -> tuple[ClassChange, ...]:
    """The changes as the provenance keeps them."""
    common: dict[str, Any] = {
        "by": account_name(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": visible(finished.run.directory.resolve().name),
    }
    records = [ClassChange(action="remove", node=node, **common) for node in changes.removed]
    records += [ClassChange(action="merge", node=new, of=list(old), **common) for new, old in changes.merged.items()]
    records += [ClassChange(action="rename", node=new, of=[old], **common) for old, new in changes.renamed.items()]
    for node, folder in changes.added.items():
        fit, held = pictures[node]
        records.append(
            ClassChange(
                action="add",
                node=node,
                folder=visible(folder.resolve().name),
                pictures=fit + held,
                held_out=held,
                prototypes=prototypes.get(node, 0),
                **common,
            )
        )
    return tuple(records)


def _after(finished: FinishedRun, tree: ChangedTree, changes: Changes, records: tuple[ClassChange, ...]) -> Provenance:
    """The provenance of the changed run: removed leaves count as left out, added ones no longer do."""
    before, taxonomy = finished.provenance, finished.taxonomy
    gone = {
        taxonomy.names[node]: folder
        for node, folder in zip(taxonomy.leaves, taxonomy.folders, strict=True)
        if node not in tree.node_of
    }
    left_out = {node: folder for node, folder in before.left_out.items() if node not in changes.added} | gone
    return before.model_copy(update={"left_out": left_out, "changes": [*before.changes, *records]})

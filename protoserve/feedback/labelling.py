"""A folder of pictures to label, from corrections: class folders of the right nodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protoserve.errors import InputError
from protoserve.feedback.pictures import find_by_hash
from protoserve.feedback.record import FeedbackRecord
from protoserve.feedback.summary import agreed, right_nodes
from protoserve.files import make_folder, new_file

# Where pictures go whose right node nobody named, or people disagree about.
UNDECIDED: Final = "undecided"


@dataclass(frozen=True)
class Labelled:
    """How many pictures were copied into the folder of a node (`decided`) or to `UNDECIDED`, how many were there
    already, and how many could not be found (`missing`)."""

    decided: int
    undecided: int
    present: int
    missing: int


def write_to_label(records: Iterable[FeedbackRecord], pictures: Path, directory: Path) -> Labelled:
    """Copy the pictures of wrong answers into `directory/NODE/SHA-256.suffix`, found in `pictures` by their SHA-256.

    A node may be an inner one, whose folder then holds pictures beside its children's. Where people named nodes of
    which one does not lie above the other, or nobody named one, the picture goes to `UNDECIDED`. A picture that is
    anywhere below `directory` already stays where it is, so that a repeated command undoes no work.

    Raises InputError if there are no corrections, or for a folder that can't be read or written.
    """
    every = list(records)
    wrong = {record.image for record in every if record.verdict == "wrong"}
    if not wrong:
        raise InputError("no feedback says that an answer was wrong, so there is nothing to label")
    if not pictures.is_dir():
        raise InputError(f"{pictures}: no such folder; give the one that holds the pictures")
    make_folder(directory)
    placed = {file.stem for file in directory.rglob("*") if file.is_file()}
    found = find_by_hash(pictures, wrong - placed)
    nodes = right_nodes(every)
    decided = undecided = 0
    for image, file in sorted(found.items()):
        node = agreed(nodes[image]) if image in nodes else None
        place = directory / (UNDECIDED if node is None else node)
        if not place.resolve().is_relative_to(directory.resolve()):
            raise InputError(f"the node {node!r} names a place outside {directory}; remove that feedback")
        make_folder(place)
        with new_file(place / f"{image}{file.suffix.lower()}") as draft:
            shutil.copyfile(file, draft)
        decided, undecided = decided + (node is not None), undecided + (node is None)
    present = len(wrong & placed)
    return Labelled(decided, undecided, present, len(wrong) - present - len(found))

"""Class folders: their picture files, and the class tree of nested folders. Links are followed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from protoserve.data.class_names import class_name
from protoserve.errors import InputError, TaxonomyError
from protoserve.images.formats import has_picture_suffix, unreadable_format
from protoserve.names import is_system_file, is_utf8, normal, one_line
from protoserve.taxonomy import Taxonomy

# The names of a split's folder, the first of which is the split's own.
SPLIT_FOLDERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"val": ("val", "valid", "validation")})
# Reason → number of files that a search passed over.
PassedOver: TypeAlias = Mapping[str, int]
# Reasons, in the words of a note: "passed over 3 files: 2 hidden, 1 …".
REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "other_suffix": "without the suffix of a picture",
        "unreadable_format": "of a format that needs an extra (HEIC: pip install 'protoserve[heif]')",
        "hidden": "hidden",
        "not_a_file": "that are pipes, sockets or devices",
        "broken": "that can't be read",
        "inner": "labelled only down to an inner node of the class tree",
    }
)


@dataclass(frozen=True)
class Pictures:
    """The picture files below a folder, sorted, and how many other files were passed over for which of `REASONS`."""

    files: tuple[Path, ...]
    passed_over: PassedOver


def find_pictures(folder: Path) -> Pictures:
    """Find all picture files below a folder, which are recognised by their suffix.

    Links to files and folders are followed; hidden entries are passed over. Raises InputError for a link that leads
    back to a folder above it.
    """
    files: list[Path] = []
    passed_over: Counter[str] = Counter()
    waiting: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while waiting:
        here, above = waiting.pop()
        status = here.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            raise InputError(f"{here}: this link leads back to a folder above it ({here.resolve()}); remove the link")
        with os.scandir(here) as entries:
            for entry in entries:
                if is_system_file(entry.name):
                    continue
                if entry.name.startswith("."):
                    passed_over["hidden"] += 1
                elif entry.is_dir():
                    waiting.append((here / entry.name, (*above, identity)))
                elif unreadable_format(entry.name) is not None:
                    passed_over["unreadable_format"] += 1
                elif not has_picture_suffix(entry.name):
                    passed_over["other_suffix"] += 1
                elif not entry.is_file() and not entry.is_symlink():
                    passed_over["not_a_file"] += 1
                else:
                    # A link to nothing is kept, so that it is reported as a picture that can't be read.
                    files.append(here / entry.name)
    return Pictures(tuple(sorted(files)), {reason: passed_over[reason] for reason in REASONS if passed_over[reason]})


def told(passed_over: PassedOver) -> str:
    """Say how many files were passed over and why; empty if there are none.

    >>> told({"other_suffix": 2, "hidden": 1})
    'passed over 3 files: 2 without the suffix of a picture, 1 hidden'
    """
    if not passed_over:
        return ""
    count = sum(passed_over.values())
    reasons = ", ".join(f"{number} {REASONS.get(reason, reason)}" for reason, number in passed_over.items())
    return f"passed over {count} {'file' if count == 1 else 'files'}: {reasons}"


def added(*counts: PassedOver) -> PassedOver:
    """Return the sums of several counts."""
    sums: Counter[str] = Counter()
    for count in counts:
        sums.update(count)
    return dict(sums)


def check_utf8(files: Iterable[Path], root: Path) -> None:
    """Raise InputError for the first file whose name is not UTF-8: records and tables could not hold it."""
    for file in files:
        if not is_utf8(str(file.relative_to(root))):
            raise InputError(f"{one_line(str(file))}: the name is not UTF-8; rename it")


def split_folder(root: Path, split: str) -> Path | None:
    """Return the folder of a split, which may be named `val`, `valid` or `validation`; None if there is none.

    Raises InputError if there are two.
    """
    found = [root / name for name in SPLIT_FOLDERS.get(split_named(split), (split,)) if (root / name).is_dir()]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} are both folders of the split 'val'; keep one")
    return found[0] if found else None


def split_named(name: str) -> str:
    """Return the split that a name stands for: `val` for `valid` and `validation`, else the name itself."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name in names), name)


def taxonomy_of_folders(directory: Path) -> Taxonomy:
    """Read the tree of nested folders below `directory`: a folder with subfolders is a parent, any other a leaf.

    A parent may have images of its own, which are labelled only down to it. Names are sorted and in Unicode's composed
    form; hidden entries are skipped. Raises InputError if there is no such folder, and TaxonomyError for a leaf without
    images, images directly in `directory`, a name that is not UTF-8 or looks like a sibling's, and a loop of links.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; give the folder that holds the class folders")
    leaves = list(_leaves(directory, (), frozenset()))
    if not leaves:
        raise TaxonomyError(f"the taxonomy is empty: {directory} holds no class folders with images")
    return Taxonomy.from_paths(leaves)


def _leaves(folder: Path, path: tuple[str, ...], above: frozenset[Path]) -> Iterator[tuple[str, ...]]:
    resolved = folder.resolve()
    if resolved in above:
        raise TaxonomyError(f"cycle in the taxonomy: {folder} links back to {resolved}; remove the link")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    subfolders = [entry for entry in entries if entry.is_dir()]
    has_images = any(has_picture_suffix(entry) for entry in entries if not entry.is_dir())
    if has_images and not path:
        raise TaxonomyError(f"{folder} holds images directly; put them into one folder per class")
    if has_images and not subfolders:
        yield path
    elif not subfolders and path:
        others = told(find_pictures(folder).passed_over)
        raise TaxonomyError(
            f"leaf {'/'.join(path)!r} has no images under {folder}{f' ({others})' if others else ''}; add some or "
            "remove it"
        )
    names: dict[str, str] = {}
    for subfolder in subfolders:
        name = class_name(subfolder.name, names, str(subfolder))
        yield from _leaves(subfolder, (*path, name), above | {resolved})


def without_only_parents(leaf: Path, folder: Path, taxonomy: Taxonomy) -> str:
    """Return the path of a leaf below a split's `folder`, in composed form and without parents of a single child.

    A parent is dropped if it has one child in this split and is not a node of the taxonomy.
    """
    kept = []
    for depth, name in enumerate(leaf.parts, start=1):
        path = Path(*leaf.parts[:depth])
        is_parent = depth < len(leaf.parts)
        if is_parent and normal(path.as_posix()) not in taxonomy.index:
            children = [entry for entry in (folder / path).iterdir() if entry.is_dir()]
            if len(children) == 1:
                continue
        kept.append(normal(name))
    return "/".join(kept)

"""Labelled images under a taxonomy: `ROOT/{train,val,test}/…`, with the class tree as folders or in a YAML file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError, TaxonomyError, nearest
from protoserve.taxonomy import IMAGE_SUFFIXES, Taxonomy

TAXONOMY_FILE = "taxonomy.yaml"


@dataclass(frozen=True)
class Dataset:
    """Images of one split. `images` are paths relative to `root`, in a fixed order, and identify an image;
    `leaves` int64 [images] are places in `taxonomy.leaves`. `renamed` lists folders that were read as a leaf of
    another path (see `read_split`)."""

    root: Path
    split: str
    taxonomy: Taxonomy
    images: tuple[str, ...]
    leaves: NDArray[np.int64]
    renamed: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def file(self, number: int) -> Path:
        """Where image `number` lies."""
        return self.root / self.images[number]

    def subset(self, numbers: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """The images of the given numbers, in that order."""
        chosen = [int(number) for number in numbers]
        return replace(self, images=tuple(self.images[i] for i in chosen), leaves=self.leaves[chosen])

    def joined(self, other: Dataset) -> Dataset:
        """These images and then the other's, which must share root and taxonomy."""
        return replace(self, images=self.images + other.images, leaves=np.concatenate([self.leaves, other.leaves]))

    def fingerprint(self) -> str:
        """A hash of every image's identity and content, `sha256:…`: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for number, image in enumerate(self.images):
            digest.update(f"{image}\0{self.leaves[number]}\0".encode())
            digest.update(hashlib.sha256(self.file(number).read_bytes()).digest())
        return f"sha256:{digest.hexdigest()}"


def read_taxonomy(root: Path) -> Taxonomy:
    """The class tree of a data set: `ROOT/taxonomy.yaml` where there is one, else the folders of `ROOT/train`.

    Raises InputError when there is neither.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; --data takes a folder that holds train, val and test")
    if (root / TAXONOMY_FILE).is_file():
        return Taxonomy.from_yaml(root / TAXONOMY_FILE)
    if not (root / "train").is_dir():
        raise InputError(f"{root}: holds no folder 'train'; --data takes a folder that holds train, val and test")
    return Taxonomy.from_folders(root / "train")


def read_split(root: Path, split: str, taxonomy: Taxonomy, *, every_leaf: bool = False) -> Dataset:
    """The images of one split.

    With `every_leaf` (for training), a leaf without images is an error; otherwise a split may cover a part of the
    leaves. Splits may differ by a level that tells nothing apart: `Vegetables/Mushroom/Brown-Cap` is read as the
    leaf `Vegetables/Brown-Cap` when `Mushroom` has that one child only and is no node of the taxonomy; `renamed`
    says so. Raises InputError for a split that does not exist, TaxonomyError for images of a class that the
    taxonomy does not hold.
    """
    folder = root / split
    if not folder.is_dir():
        held = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
        raise InputError(f"{root}: no split {split!r}{nearest(split, held)}; it holds {', '.join(held) or 'none'}")
    place = {name: number for number, name in enumerate(taxonomy.folders)}
    images: list[str] = []
    leaves: list[int] = []
    renamed: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if file.suffix.lower() not in IMAGE_SUFFIXES or any(part.startswith(".") for part in relative.parts):
            continue
        leaf = relative.parent.as_posix()
        if leaf not in place and leaf not in renamed and leaf not in unknown:
            shorter = _without_only_parents(relative.parent, folder, taxonomy)
            if shorter in place and not (folder / shorter).is_dir():
                renamed[leaf] = shorter
            else:
                unknown[leaf] = None
        if leaf not in unknown:
            images.append(file.relative_to(root).as_posix())
            leaves.append(place[renamed.get(leaf, leaf)])
    if unknown:
        name = next(iter(unknown))
        raise TaxonomyError(
            f"{folder / name}: holds images, but the taxonomy has no leaf {name!r}{nearest(name, place)}; "
            "remove the folder or add the leaf"
        )
    if not images:
        raise InputError(f"{folder}: holds no images of the taxonomy's {len(place)} leaves")
    if every_leaf and (missing := sorted(set(range(len(place))) - set(leaves))):
        leaf = taxonomy.names[taxonomy.leaves[missing[0]]]
        raise TaxonomyError(f"leaf {leaf!r} has no images under {folder / taxonomy.folders[missing[0]]}; add some")
    return Dataset(root, split, taxonomy, tuple(images), np.array(leaves, dtype=np.int64), tuple(renamed.items()))


def _without_only_parents(leaf: Path, folder: Path, taxonomy: Taxonomy) -> str:
    """The leaf's path without the folders that have one child in this split and are no node of the taxonomy."""
    kept = []
    for depth, name in enumerate(leaf.parts, start=1):
        above = Path(*leaf.parts[:depth])
        inner = depth < len(leaf.parts)
        if inner and above.as_posix() not in taxonomy.index:
            children = [entry for entry in (folder / above).iterdir() if entry.is_dir()]
            if len(children) == 1:
                continue
        kept.append(name)
    return "/".join(kept)


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split off about `fraction` of every leaf's images, at least one where a leaf has two or more.

    The choice depends on the images' identities and the seed alone. Returns the rest and the held-out part.
    """
    held: list[int] = []
    for leaf in np.unique(dataset.leaves):
        numbers = np.flatnonzero(dataset.leaves == leaf)
        count = min(len(numbers) - 1, max(1, round(fraction * len(numbers)))) if fraction > 0 else 0
        ranked = sorted(
            numbers.tolist(), key=lambda i: hashlib.sha256(f"{seed}\0{dataset.images[i]}".encode()).digest()
        )
        held.extend(ranked[:count])
    rest = np.setdiff1d(np.arange(len(dataset)), held)
    return dataset.subset(rest), dataset.subset(sorted(held))

"""Labelled images under a taxonomy.

A data set is a folder `ROOT/{train,val,test}/…` with the class tree as folders or in a YAML file, a table with one row
per image, or a folder of IDX files such as MNIST's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from protoserve.data.class_names import hint
from protoserve.data.folders import (
    PassedOver,
    added,
    check_utf8,
    find_pictures,
    split_folder,
    split_named,
    taxonomy_of_folders,
    told,
    without_only_parents,
)
from protoserve.data.idx import holds_idx, holds_idx_split, read_idx_labels, read_idx_split
from protoserve.data.tables import Table, is_table, read_table
from protoserve.data.taxonomy_file import TAXONOMY_FILE, read_taxonomy_file
from protoserve.errors import InputError, TaxonomyError, nearest
from protoserve.images.decoded import DecodedImage
from protoserve.images.decoding import decode
from protoserve.images.geometry import Geometry, InputRule, geometry_of
from protoserve.names import normal
from protoserve.taxonomy import Taxonomy

# Marks the images that a split skips.
LEFT_OUT: Final = -1
# The share of train that `data.hold_out: auto` holds out of a data set without a val split.
AUTO_HOLD_OUT: Final = 0.1
NOTHING_LEFT_OUT: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Dataset:
    """The images of one split.

    `images` are paths relative to `root`, in a fixed order; each identifies its image. `leaves` int64 [images] are
    indices of `taxonomy.leaves`; for an image that is labelled only down to an inner node, of `taxonomy.label_nodes`,
    which the leaves begin. `renamed` lists folders that were read as a leaf with another path (see `read_split`).
    `pixels` uint8 [images, rows, columns] are the grey pictures themselves, or None if each picture is a file.
    `passed_over` counts the files that are not among the images, by reason (see `protoserve.data.folders.REASONS`).
    `elsewhere` holds the files of images that do not lie below `root`, by image.
    """

    root: Path
    split: str
    taxonomy: Taxonomy
    images: tuple[str, ...]
    leaves: NDArray[np.int64]
    renamed: tuple[tuple[str, str], ...] = ()
    pixels: NDArray[np.uint8] | None = None
    passed_over: PassedOver = field(default_factory=dict)
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def to_leaf(self) -> NDArray[np.bool_]:
        """Whether each image is labelled down to a leaf: bool [images]."""
        return self.leaves < len(self.taxonomy.leaves)

    def file(self, index: int) -> Path:
        """Return the path of an image."""
        image = self.images[index]
        return self.elsewhere.get(image, self.root / image)

    def index(self, image: str) -> int:
        """Return the index of an image; raises InputError if the split does not contain it."""
        try:
            return self.images.index(image)
        except ValueError:
            raise InputError(f"{self.root}: the split {self.split!r} holds no image {image!r}") from None

    def picture(self, index: int) -> DecodedImage:
        """Decode an image to upright RGB; raises ImageError and InputError as `protoserve.images.decoding.decode`."""
        return decode(self.file(index) if self.pixels is None else self.pixels[index])

    def geometry(self, index: int, rule: InputRule) -> Geometry:
        """Return the geometry of an image under `rule`; decodes the image for its size, but does not resize it."""
        picture = self.picture(index)
        return geometry_of(picture.width, picture.height, rule, picture.reduced)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """Return the data set of the images at `indices`, in that order."""
        chosen = [int(index) for index in indices]
        pixels = None if self.pixels is None else self.pixels[chosen]
        return replace(self, images=tuple(self.images[i] for i in chosen), leaves=self.leaves[chosen], pixels=pixels)

    def without(self, images: Collection[str], reason: str = "broken") -> Dataset:
        """Return the data set without these images, which count as passed over for `reason`."""
        left = [index for index, image in enumerate(self.images) if image not in images]
        dropped = len(self) - len(left)
        return replace(self.subset(left), passed_over=added(self.passed_over, {reason: dropped} if dropped else {}))

    def not_passing_over(self, reason: str) -> Dataset:
        """Return the data set with no file passed over for `reason`, because another data set holds those."""
        return replace(self, passed_over={name: count for name, count in self.passed_over.items() if name != reason})

    def notes(self) -> list[str]:
        """Say which folders were read as a leaf with another path, and how many files were passed over and why."""
        lines = [f"note: {self.split}/{folder} is read as the leaf {leaf}" for folder, leaf in self.renamed]
        return lines + ([f"note: {self.split}: {told(self.passed_over)}"] if self.passed_over else [])

    def joined(self, other: Dataset) -> Dataset:
        """Append the other data set's images; both must have the same root and taxonomy."""
        pixels = None
        if self.pixels is not None and other.pixels is not None:
            pixels = np.concatenate([self.pixels, other.pixels])
        leaves = np.concatenate([self.leaves, other.leaves])
        elsewhere = {**self.elsewhere, **other.elsewhere}
        return replace(self, images=self.images + other.images, leaves=leaves, pixels=pixels, elsewhere=elsewhere)

    def fingerprint(self) -> str:
        """Return a hash of all images' names, leaves and contents, `sha256:…`."""
        digest = hashlib.sha256()
        for index, image in enumerate(self.images):
            digest.update(f"{image}\0{self.leaves[index]}\0".encode())
            digest.update(self.content_hash(index))
        return f"sha256:{digest.hexdigest()}"

    def content_hash(self, index: int) -> bytes:
        """Return the SHA-256 of an image's file, or of its pixels if it is not a file; raises InputError if the file
        can't be read."""
        if self.pixels is not None:
            return hashlib.sha256(self.pixels[index].tobytes()).digest()
        try:
            return hashlib.sha256(self.file(index).read_bytes()).digest()
        except OSError as error:
            raise InputError(f"{self.file(index)}: can't read the image ({error.strerror})") from error


def read_taxonomy(root: Path) -> Taxonomy:
    """Read the class tree of a data set.

    For a folder it is `ROOT/taxonomy.yaml` if that exists, else the labels of IDX files or the folders of `ROOT/train`.
    For a table (see `protoserve.data.tables`) it is the classes of the training rows.

    Raises InputError if there is none of these, and TaxonomyError if it is not a tree.
    """
    if is_table(root):
        table = read_table(root)
        paths = {table.paths[row] for row in table.rows("train")}
        inner = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/"}
        return Taxonomy.from_paths(sorted(paths - inner))
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; --data takes a folder that holds train, val and test, or a CSV or Parquet file"
        )
    if (root / TAXONOMY_FILE).is_file():
        return read_taxonomy_file(root / TAXONOMY_FILE)
    if holds_idx(root):
        labels = read_idx_labels(root, "train")
        return Taxonomy.from_paths([str(label) for label in range(int(labels.max(initial=0)) + 1)])
    if not (root / "train").is_dir():
        raise InputError(f"{root}: holds no folder 'train'; --data takes a folder that holds train, val and test")
    return taxonomy_of_folders(root / "train")


def holds_split(root: Path, split: str) -> bool:
    """Return whether a data set has the split: a folder of that name (for val also `valid` and `validation`), rows of a
    table, or IDX files."""
    if is_table(root):
        return split_named(split) in read_table(root).splits
    return split_folder(root, split) is not None or holds_idx_split(root, split)


def read_split(
    root: Path,
    split: str,
    taxonomy: Taxonomy,
    *,
    left_out: Mapping[str, str] = NOTHING_LEFT_OUT,
    every_leaf: bool = False,
) -> Dataset:
    """Read one split of a data set.

    `left_out`, leaf → folder, are leaves that the taxonomy leaves out on purpose; their images are skipped. With
    `every_leaf` (for training), a leaf without images is an error; otherwise a split may contain only some leaves.

    Splits may differ by a level of only children: `Vegetables/Mushroom/Brown-Cap` is read as the leaf
    `Vegetables/Brown-Cap` if `Mushroom` has no other child and is not a node of the taxonomy. `renamed` lists such
    folders. Images that are labelled only down to an inner node count as passed over; `read_inner` reads them.

    Raises InputError for a split that does not exist, and TaxonomyError for images of a class that the taxonomy does
    not contain.
    """
    dataset = _read_labelled(root, split_named(split), taxonomy, left_out)
    to_leaf = dataset.to_leaf
    if inner := int((~to_leaf).sum()):
        leaves = dataset.subset(np.flatnonzero(to_leaf))
        dataset = replace(leaves, passed_over=added(dataset.passed_over, {"inner": inner}))
    if not len(dataset):
        others = told(dataset.passed_over)
        brackets = f" ({others})" if others else ""
        raise InputError(
            f"{root}: {dataset.split!r} holds no images of the taxonomy's {len(taxonomy.leaves)} leaves{brackets}"
        )
    missing = sorted(set(range(len(taxonomy.leaves))) - set(dataset.leaves.tolist()))
    if every_leaf and missing:
        name, folder = taxonomy.names[taxonomy.leaves[missing[0]]], taxonomy.folders[missing[0]]
        raise TaxonomyError(f"leaf {name!r} has no images {_place(root, dataset.split, folder)}; add some")
    return dataset


def read_inner(
    root: Path, split: str, taxonomy: Taxonomy, *, left_out: Mapping[str, str] = NOTHING_LEFT_OUT
) -> Dataset:
    """Read the images of a split that are labelled only down to an inner node of the taxonomy; perhaps none.

    Those of a parent that the taxonomy lost with its left-out leaves are skipped. Raises as `read_split` does.
    """
    dataset = _read_labelled(root, split_named(split), taxonomy, left_out)
    return replace(dataset.subset(np.flatnonzero(~dataset.to_leaf)), renamed=(), passed_over={})


def read_labelled(
    root: Path, split: str, taxonomy: Taxonomy, *, left_out: Mapping[str, str] = NOTHING_LEFT_OUT
) -> Dataset:
    """Read a split as `read_split` does, with the images of `read_inner` at its end."""
    dataset = read_split(root, split, taxonomy, left_out=left_out)
    if "inner" not in dataset.passed_over:
        return dataset
    return dataset.not_passing_over("inner").joined(read_inner(root, split, taxonomy, left_out=left_out))


def _place(root: Path, split: str, folder: str) -> str:
    """Say where a leaf's images of a split would be."""
    if is_table(root):
        return f"in {split!r} of {root}"
    if holds_idx(root):
        return f"of the class {folder} in {split!r}"
    return f"under {(split_folder(root, split) or root / split) / folder}"


def _read_labelled(root: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str]) -> Dataset:
    """Read all images of a split that have a label of the taxonomy."""
    if is_table(root):
        return _read_rows(read_table(root), split, taxonomy, left_out)
    if holds_idx(root):
        return _read_idx(root, split, taxonomy, left_out)
    if split_folder(root, split) is None:
        present = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
        raise InputError(
            f"{root}: no split {split!r}{nearest(split, present)}; it holds {', '.join(present) or 'none'}"
        )
    return _read_folders(root, split, taxonomy, left_out)


def held_out_share(setting: float | Literal["auto"], *, has_val: bool) -> float:
    """Return the share of train to hold out for a `data.hold_out` setting: `auto` holds out `AUTO_HOLD_OUT` only where
    the data set has no val split."""
    if setting != "auto":
        return setting
    return 0.0 if has_val else AUTO_HOLD_OUT


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out about `fraction` of each leaf's images: at least one if the leaf has two or more, never all.

    The choice depends only on the images' names and the seed. Returns the rest and the held-out part.
    """
    held_out: list[int] = []
    for leaf in np.unique(dataset.leaves):
        indices = np.flatnonzero(dataset.leaves == leaf)
        count = min(len(indices) - 1, max(1, round(fraction * len(indices)))) if fraction > 0 else 0
        ranked = sorted(
            indices.tolist(), key=lambda i: hashlib.sha256(f"{seed}\0{dataset.images[i]}".encode()).digest()
        )
        held_out.extend(ranked[:count])
    rest = np.setdiff1d(np.arange(len(dataset)), held_out)
    return dataset.subset(rest), dataset.subset(sorted(held_out))


# ---- one reader per form of data set -------------------------------------------------------------------------


def _inner_labels(taxonomy: Taxonomy, left_out: Iterable[str]) -> dict[str, int]:
    """Map the inner nodes to their labels, and those that only left-out leaves had to `LEFT_OUT`."""
    parents = {name[:end] for name in left_out for end, letter in enumerate(name) if letter == "/"}
    labels = {normal(parent): LEFT_OUT for parent in parents}
    inner = taxonomy.label_nodes[len(taxonomy.leaves) :].tolist()
    return labels | {normal(taxonomy.names[node]): label for label, node in enumerate(inner, len(taxonomy.leaves))}


def _read_folders(root: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str]) -> Dataset:
    """Read a split of class folders."""
    folder = split_folder(root, split)
    assert folder is not None  # `read_split` has checked it
    leaf_of = _inner_labels(taxonomy, left_out)
    leaf_of |= {normal(name): leaf for leaf, name in enumerate(taxonomy.folders)}
    leaf_of |= dict.fromkeys(map(normal, left_out.values()), LEFT_OUT)
    found = find_pictures(folder)
    check_utf8(found.files, root)
    images: list[str] = []
    leaves: list[int] = []
    renamed: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for file in found.files:
        class_folder = file.parent.relative_to(folder)
        name = normal(class_folder.as_posix())
        if name not in leaf_of and name not in renamed and name not in unknown:
            shorter = without_only_parents(class_folder, folder, taxonomy)
            if shorter in leaf_of and not (folder / shorter).is_dir():
                renamed[name] = shorter
            else:
                unknown[name] = None
        if name not in unknown and (leaf := leaf_of[renamed.get(name, name)]) != LEFT_OUT:
            images.append(file.relative_to(root).as_posix())
            leaves.append(leaf)
    if unknown:
        name = next(iter(unknown))
        raise TaxonomyError(
            f"{folder / name}: holds images, but the taxonomy has no leaf {name!r}{hint(name, leaf_of)}; "
            "remove the folder or add the leaf"
        )
    kept = tuple((name, shorter) for name, shorter in renamed.items() if leaf_of[shorter] != LEFT_OUT)
    return Dataset(
        root,
        split,
        taxonomy,
        tuple(images),
        np.array(leaves, dtype=np.int64),
        kept,
        passed_over=found.passed_over,
    )


def _read_idx(root: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str]) -> Dataset:
    """Read a split of IDX files; the folder of a leaf is its label, a number."""
    pixels, labels = read_idx_split(root, split)
    unknown_leaf = len(taxonomy.leaves)
    leaf_of_label = np.full(256, unknown_leaf, dtype=np.int64)
    nodes = zip(taxonomy.leaves, taxonomy.folders, strict=True)
    known = [(taxonomy.names[node], folder, leaf) for leaf, (node, folder) in enumerate(nodes)]
    for name, folder, leaf in [*known, *((name, folder, LEFT_OUT) for name, folder in left_out.items())]:
        if not folder.isdecimal() or int(folder) > 255:
            raise TaxonomyError(
                f"{root / TAXONOMY_FILE}: the leaf {name!r} has the folder {folder!r}, but the classes of IDX files "
                f'are numbers; write for example {name.rpartition("/")[2]}: "0"'
            )
        leaf_of_label[int(folder)] = leaf
    leaves = leaf_of_label[labels]
    if (unknown := labels[leaves == unknown_leaf]).size:
        raise TaxonomyError(
            f"{root}: holds images of the class {unknown[0]}, but the taxonomy has no such leaf; "
            f"add it to {TAXONOMY_FILE}"
        )
    kept = np.flatnonzero(leaves != LEFT_OUT)
    images = tuple(f"{split}/{labels[index]}/{index:05d}" for index in kept)
    return Dataset(root, split, taxonomy, images, leaves[kept], pixels=pixels[kept])


def _read_rows(table: Table, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str]) -> Dataset:
    """Read a split of a table, in the order of its rows."""
    leaf_of = _inner_labels(taxonomy, left_out)
    leaf_of |= {normal(taxonomy.names[node]): leaf for leaf, node in enumerate(taxonomy.leaves)}
    skipped = {normal(path) for path in left_out} | {path for path, leaf in leaf_of.items() if leaf == LEFT_OUT}
    images, leaves = [], []
    for row in table.rows(split):
        path = table.paths[row]
        if path in skipped:
            continue
        if path not in leaf_of:
            raise TaxonomyError(
                f"{table.cell(row, 'path')}: the taxonomy has no leaf {path!r}{hint(path, leaf_of)}; correct the "
                "class, or remove the row"
            )
        images.append(table.images[row])
        leaves.append(leaf_of[path])
    return Dataset(table.root, split, taxonomy, tuple(images), np.array(leaves, dtype=np.int64))

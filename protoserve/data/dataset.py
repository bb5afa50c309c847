"""Labelled images under a taxonomy.

A data set is a folder `ROOT/{train,val,test}/…` with the class tree as folders or in a YAML file, a table with one row
per image, or a folder of IDX files such as MNIST's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.data.folders import image_files, taxonomy_of_folders, without_only_parents
from protoserve.data.idx import holds_idx, holds_idx_split, read_idx_labels, read_idx_split
from protoserve.data.tables import Table, is_table, read_table
from protoserve.data.taxonomy_file import TAXONOMY_FILE, read_taxonomy_file
from protoserve.errors import InputError, TaxonomyError, nearest
from protoserve.images.decoding import DecodedImage, decode
from protoserve.images.geometry import Geometry, InputRule, geometry_of
from protoserve.taxonomy import Taxonomy

# Stands for the leaf of images that are passed over.
LEFT_OUT: Final = -1
NOTHING_LEFT_OUT: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Dataset:
    """The images of one split.

    `images` are paths relative to `root`, in a fixed order; each identifies its image. `leaves` int64 [images] are
    indices into `taxonomy.leaves`. `renamed` lists folders that were read as a leaf of another path (see `read_split`).
    `pixels` uint8 [images, rows, columns] are the grey pictures themselves, or None where each is a file of its own.
    """

    root: Path
    split: str
    taxonomy: Taxonomy
    images: tuple[str, ...]
    leaves: NDArray[np.int64]
    renamed: tuple[tuple[str, str], ...] = ()
    pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def file(self, number: int) -> Path:
        """The path of image `number`."""
        return self.root / self.images[number]

    def number(self, image: str) -> int:
        """The number of an image, given its identity; raises InputError where there is none."""
        try:
            return self.images.index(image)
        except ValueError:
            raise InputError(f"{self.root}: the split {self.split!r} holds no image {image!r}") from None

    def picture(self, number: int) -> DecodedImage:
        """Image `number`, upright RGB; raises ImageError and InputError as `protoserve.images.decoding.decode` does."""
        return decode(self.file(number) if self.pixels is None else self.pixels[number])

    def geometry(self, number: int, rule: InputRule) -> Geometry:
        """Where the model's pixels lie in image `number`, which is decoded for its size but not resized."""
        picture = self.picture(number)
        return geometry_of(picture.width, picture.height, rule)

    def subset(self, numbers: Sequence[int] | NDArray[np.int64]) -> Dataset:
        """The images of the given numbers, in that order."""
        chosen = [int(number) for number in numbers]
        pixels = None if self.pixels is None else self.pixels[chosen]
        return replace(self, images=tuple(self.images[i] for i in chosen), leaves=self.leaves[chosen], pixels=pixels)

    def joined(self, other: Dataset) -> Dataset:
        """These images and then the other's; both must share root and taxonomy."""
        pixels = None
        if self.pixels is not None and other.pixels is not None:
            pixels = np.concatenate([self.pixels, other.pixels])
        leaves = np.concatenate([self.leaves, other.leaves])
        return replace(self, images=self.images + other.images, leaves=leaves, pixels=pixels)

    def fingerprint(self) -> str:
        """A hash of every image's identity, leaf and content, `sha256:…`: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for number, image in enumerate(self.images):
            digest.update(f"{image}\0{self.leaves[number]}\0".encode())
            content = self.file(number).read_bytes() if self.pixels is None else self.pixels[number].tobytes()
            digest.update(hashlib.sha256(content).digest())
        return f"sha256:{digest.hexdigest()}"


def read_taxonomy(root: Path) -> Taxonomy:
    """The class tree of a data set: `ROOT/taxonomy.yaml` where there is one, else the folders of `ROOT/train`, else, of
    IDX files, their labels; of a table (see `protoserve.data.tables`), the classes of its training rows.

    Raises InputError when there is none of these.
    """
    if is_table(root):
        table = read_table(root)
        return Taxonomy.from_paths(sorted({table.paths[row] for row in table.rows("train")}))
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
    """Whether a data set has the split: a folder of that name, rows of a table, or IDX files."""
    if is_table(root):
        return split in read_table(root).splits
    return (root / split).is_dir() or holds_idx_split(root, split)


def read_split(
    root: Path,
    split: str,
    taxonomy: Taxonomy,
    *,
    left_out: Mapping[str, str] = NOTHING_LEFT_OUT,
    every_leaf: bool = False,
) -> Dataset:
    """The images of one split.

    `left_out`, leaf → folder, names leaves that the taxonomy leaves out on purpose; their images are passed over.

    With `every_leaf` (for training), a leaf without images is an error; otherwise a split may cover a part of the
    leaves. Splits may differ by a level that tells nothing apart: `Vegetables/Mushroom/Brown-Cap` is read as the
    leaf `Vegetables/Brown-Cap` when `Mushroom` has that one child only and is no node of the taxonomy; `renamed`
    says so. Raises InputError for a split that does not exist, TaxonomyError for images of a class that the
    taxonomy does not hold.
    """
    if is_table(root):
        return _read_rows(read_table(root), split, taxonomy, left_out, every_leaf)
    if holds_idx(root):
        return _read_idx(root, split, taxonomy, left_out, every_leaf)
    if not (root / split).is_dir():
        held = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
        raise InputError(f"{root}: no split {split!r}{nearest(split, held)}; it holds {', '.join(held) or 'none'}")
    return _read_folders(root, split, taxonomy, left_out, every_leaf)


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


# ---- one reader for each form of a data set ------------------------------------------------------------------


def _read_folders(root: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str], every_leaf: bool) -> Dataset:
    """A split of class folders."""
    folder = root / split
    leaf_of = {name: leaf for leaf, name in enumerate(taxonomy.folders)}
    leaf_of |= dict.fromkeys(left_out.values(), LEFT_OUT)
    images: list[str] = []
    leaves: list[int] = []
    renamed: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for file in image_files(folder):
        class_folder = file.parent.relative_to(folder)
        name = class_folder.as_posix()
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
            f"{folder / name}: holds images, but the taxonomy has no leaf {name!r}{nearest(name, leaf_of)}; "
            "remove the folder or add the leaf"
        )
    if not images:
        raise InputError(f"{folder}: holds no images of the taxonomy's {len(taxonomy.leaves)} leaves")
    if every_leaf and (missing := sorted(set(range(len(taxonomy.leaves))) - set(leaves))):
        name = taxonomy.names[taxonomy.leaves[missing[0]]]
        raise TaxonomyError(f"leaf {name!r} has no images under {folder / taxonomy.folders[missing[0]]}; add some")
    kept = tuple((name, shorter) for name, shorter in renamed.items() if leaf_of[shorter] != LEFT_OUT)
    return Dataset(root, split, taxonomy, tuple(images), np.array(leaves, dtype=np.int64), kept)


def _read_idx(root: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str], every_leaf: bool) -> Dataset:
    """A split of IDX files: the folder of a leaf is its label, a number."""
    pixels, labels = read_idx_split(root, split)
    unknown_leaf = len(taxonomy.leaves)
    leaf_of_label = np.full(256, unknown_leaf, dtype=np.int64)
    nodes = zip(taxonomy.leaves, taxonomy.folders, strict=True)
    known = [(taxonomy.names[node], folder, leaf) for leaf, (node, folder) in enumerate(nodes)]
    for name, folder, leaf in [*known, *((name, folder, LEFT_OUT) for name, folder in left_out.items())]:
        if not folder.isdecimal() or int(folder) > 255:
            raise TaxonomyError(
                f"{root / TAXONOMY_FILE}: the leaf {name!r} stands for {folder!r}, but the classes of IDX files are "
                f'numbers; write for example {name.rpartition("/")[2]}: "0"'
            )
        leaf_of_label[int(folder)] = leaf
    leaves = leaf_of_label[labels]
    if (unknown := labels[leaves == unknown_leaf]).size:
        raise TaxonomyError(
            f"{root}: holds images of the class {unknown[0]}, but the taxonomy has no such leaf; "
            f"add it to {TAXONOMY_FILE}"
        )
    for name, folder, leaf in known:
        if every_leaf and not (leaves == leaf).any():
            raise TaxonomyError(f"leaf {name!r} has no images of the class {folder} among those to train on; add some")
    kept = np.flatnonzero(leaves != LEFT_OUT)
    images = tuple(f"{split}/{labels[number]}/{number:05d}" for number in kept)
    return Dataset(root, split, taxonomy, images, leaves[kept], pixels=pixels[kept])


def _read_rows(table: Table, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str], every_leaf: bool) -> Dataset:
    """One split of a table, in the order of its rows."""
    leaf_of = {taxonomy.names[node]: leaf for leaf, node in enumerate(taxonomy.leaves)}
    images, leaves = [], []
    for row in table.rows(split):
        path = table.paths[row]
        if path in left_out:
            continue
        if path not in leaf_of:
            raise TaxonomyError(
                f"{table.cell(row, 'path')}: the taxonomy has no leaf {path!r}{nearest(path, leaf_of)}; correct the "
                "class, or remove the row"
            )
        images.append(table.images[row])
        leaves.append(leaf_of[path])
    if not images:
        raise InputError(f"{table.file}: {split!r} holds no images of the taxonomy's {len(leaf_of)} leaves")
    if every_leaf and (missing := sorted(set(leaf_of.values()) - set(leaves))):
        name = taxonomy.names[taxonomy.leaves[missing[0]]]
        raise TaxonomyError(f"{table.file}: leaf {name!r} has no images in {split!r}; add some")
    return Dataset(table.root, split, taxonomy, tuple(images), np.array(leaves, dtype=np.int64))

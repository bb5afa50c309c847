"""Labelled images under a taxonomy: `ROOT/{train,val,test}/…`, with the class tree as folders or in a YAML file, or a
table with one row per image, or the IDX files of MNIST and its kin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoserve.data.idx import holds_idx, holds_idx_split, read_idx_labels, read_idx_split
from protoserve.data.tables import Manifest, is_manifest, read_manifest
from protoserve.errors import InputError, TaxonomyError, nearest
from protoserve.images.decoding import DecodedImage, decode
from protoserve.images.geometry import Geometry, InputRule, geometry_of
from protoserve.taxonomy import IMAGE_SUFFIXES, ROOT, Taxonomy

TAXONOMY_FILE = "taxonomy.yaml"
# Stands for the place of a leaf whose images are passed over.
LEFT_OUT = -1


@dataclass(frozen=True)
class Dataset:
    """Images of one split. `images` are paths relative to `root`, in a fixed order, and identify an image;
    `leaves` int64 [images] are places in `taxonomy.leaves`. `renamed` lists folders that were read as a leaf of
    another path (see `read_split`). `pixels` uint8 [images, rows, columns] are the pictures themselves where the data
    set is held in memory and not as one file per image."""

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
        """Where image `number` lies."""
        return self.root / self.images[number]

    def number(self, image: str) -> int:
        """The number of the image of that identity; raises InputError where there is none."""
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
        """These images and then the other's, which must share root and taxonomy."""
        pixels = None
        if self.pixels is not None and other.pixels is not None:
            pixels = np.concatenate([self.pixels, other.pixels])
        leaves = np.concatenate([self.leaves, other.leaves])
        return replace(self, images=self.images + other.images, leaves=leaves, pixels=pixels)

    def fingerprint(self) -> str:
        """A hash of every image's identity and content, `sha256:…`: equal data, equal fingerprint."""
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
    if is_manifest(root):
        manifest = read_manifest(root)
        return Taxonomy.from_paths(sorted({manifest.paths[row] for row in manifest.rows("train")}))
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; --data takes a folder that holds train, val and test, or a CSV or Parquet file"
        )
    if (root / TAXONOMY_FILE).is_file():
        return Taxonomy.from_yaml(root / TAXONOMY_FILE)
    if holds_idx(root):
        labels = read_idx_labels(root, "train")
        return Taxonomy.from_paths([str(label) for label in range(int(labels.max(initial=0)) + 1)])
    if not (root / "train").is_dir():
        raise InputError(f"{root}: holds no folder 'train'; --data takes a folder that holds train, val and test")
    return Taxonomy.from_folders(root / "train")


def holds_split(root: Path, split: str) -> bool:
    """Whether a data set has the split: a folder of that name, rows of a table, or IDX files."""
    if is_manifest(root):
        return split in read_manifest(root).splits
    return (root / split).is_dir() or holds_idx_split(root, split)


def read_split(
    root: Path, split: str, taxonomy: Taxonomy, *, left_out: Mapping[str, str] | None = None, every_leaf: bool = False
) -> Dataset:
    """The images of one split.

    `left_out`, leaf → folder, names leaves that the taxonomy does not hold on purpose; their images are passed over.

    With `every_leaf` (for training), a leaf without images is an error; otherwise a split may cover a part of the
    leaves. Splits may differ by a level that tells nothing apart: `Vegetables/Mushroom/Brown-Cap` is read as the
    leaf `Vegetables/Brown-Cap` when `Mushroom` has that one child only and is no node of the taxonomy; `renamed`
    says so. Raises InputError for a split that does not exist, TaxonomyError for images of a class that the
    taxonomy does not hold.
    """
    folder = root / split
    if is_manifest(root):
        return _read_rows(read_manifest(root), split, taxonomy, left_out or {}, every_leaf)
    if holds_idx(root):
        return _read_idx(root, split, taxonomy, left_out or {}, every_leaf)
    if not folder.is_dir():
        held = sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
        raise InputError(f"{root}: no split {split!r}{nearest(split, held)}; it holds {', '.join(held) or 'none'}")
    place = {name: number for number, name in enumerate(taxonomy.folders)}
    place |= dict.fromkeys((left_out or {}).values(), LEFT_OUT)
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
        if leaf not in unknown and (number := place[renamed.get(leaf, leaf)]) != LEFT_OUT:
            images.append(file.relative_to(root).as_posix())
            leaves.append(number)
    if unknown:
        name = next(iter(unknown))
        raise TaxonomyError(
            f"{folder / name}: holds images, but the taxonomy has no leaf {name!r}{nearest(name, place)}; "
            "remove the folder or add the leaf"
        )
    if not images:
        raise InputError(f"{folder}: holds no images of the taxonomy's {len(taxonomy.leaves)} leaves")
    if every_leaf and (missing := sorted(set(range(len(taxonomy.leaves))) - set(leaves))):
        leaf = taxonomy.names[taxonomy.leaves[missing[0]]]
        raise TaxonomyError(f"leaf {leaf!r} has no images under {folder / taxonomy.folders[missing[0]]}; add some")
    kept = tuple((given, leaf) for given, leaf in renamed.items() if place[leaf] != LEFT_OUT)
    return Dataset(root, split, taxonomy, tuple(images), np.array(leaves, dtype=np.int64), kept)


@dataclass(frozen=True)
class NovelImages:
    """Images of classes that a taxonomy does not hold. `images` are paths relative to `root`; `ancestor` int64 [images]
    is the deepest node that each is known to lie below, or `ROOT`; `passed_over` counts the images of known classes
    that lay among them."""

    root: Path
    images: tuple[str, ...]
    ancestor: NDArray[np.int64]
    passed_over: int

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, number: int) -> DecodedImage:
        """Image `number`, upright RGB; raises ImageError as `protoserve.images.decoding.decode` does."""
        return decode(self.root / self.images[number])


def read_novel(
    directory: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str] | None = None
) -> NovelImages:
    """The images below `directory`, or below its folder `split` where it has one, whose class the taxonomy lacks.

    Class folders are nested like the taxonomy as far as it is known where they belong: images in `Fruit/Apple/Jonagold`
    are novel below `Fruit/Apple`, those in `Fruit/Apple` itself, too; those in `Bicycle` are novel below the root. A
    folder that stands for a known leaf, or lies within one, is passed over, so that the data set of a run with left-out
    leaves may be given as it is. `left_out`, leaf → folder, and a `taxonomy.yaml` in `directory` say where flat
    folders belong. Raises InputError when there is no such folder or nothing novel in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; --novel takes a folder of class folders")
    folder = directory / split if (directory / split).is_dir() else directory
    path_of: dict[str, str] = {}
    if (directory / TAXONOMY_FILE).is_file():
        given = Taxonomy.from_yaml(directory / TAXONOMY_FILE)
        path_of = {name: given.names[leaf] for leaf, name in zip(given.leaves, given.folders, strict=True)}
    path_of |= {name: leaf for leaf, name in (left_out or {}).items()}
    path_of |= {name: taxonomy.names[leaf] for leaf, name in zip(taxonomy.leaves, taxonomy.folders, strict=True)}
    leaves = {taxonomy.names[leaf] for leaf in taxonomy.leaves}
    ancestors: dict[str, int | None] = {}
    images, found, passed_over = [], [], 0
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        if file.suffix.lower() not in IMAGE_SUFFIXES or any(part.startswith(".") for part in relative.parts):
            continue
        place = relative.parent.as_posix()
        if place not in ancestors:
            shorter = _without_only_parents(relative.parent, folder, taxonomy)
            path = path_of.get(place, path_of.get(shorter, place))
            parts = [] if path == "." else path.split("/")
            known = [name for depth in range(1, len(parts) + 1) if (name := "/".join(parts[:depth])) in taxonomy.index]
            ancestors[place] = ROOT if not known else None if known[-1] in leaves else taxonomy.index[known[-1]]
        ancestor = ancestors[place]
        if ancestor is None:
            passed_over += 1
        else:
            images.append(file.relative_to(directory).as_posix())
            found.append(ancestor)
    if not images:
        raise InputError(
            f"{folder}: holds no image of a class that the taxonomy lacks ({passed_over} of known ones); give a folder "
            "with other classes, or train with --leave-out LEAF"
        )
    return NovelImages(directory, tuple(images), np.array(found, dtype=np.int64), passed_over)


def _read_idx(root: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str], every_leaf: bool) -> Dataset:
    """A split of IDX files: the folder of a leaf is its label, a number."""
    pixels, labels = read_idx_split(root, split)
    place = np.full(256, len(taxonomy.leaves), dtype=np.int64)
    names = zip(taxonomy.leaves, taxonomy.folders, strict=True)
    places = [(taxonomy.names[leaf], folder, number) for number, (leaf, folder) in enumerate(names)]
    for name, folder, number in [*places, *((leaf, folder, LEFT_OUT) for leaf, folder in left_out.items())]:
        if not folder.isdecimal() or int(folder) > 255:
            raise TaxonomyError(
                f"{root / TAXONOMY_FILE}: the leaf {name!r} stands for {folder!r}, but the classes of IDX files are "
                f'numbers; write for example {name.rpartition("/")[2]}: "0"'
            )
        place[int(folder)] = number
    leaves = place[labels]
    if (unknown := labels[leaves == len(taxonomy.leaves)]).size:
        raise TaxonomyError(
            f"{root}: holds images of the class {unknown[0]}, but the taxonomy has no such leaf; "
            f"add it to {TAXONOMY_FILE}"
        )
    for name, folder, number in places:
        if every_leaf and not (leaves == number).any():
            raise TaxonomyError(f"leaf {name!r} has no images of the class {folder} among those to train on; add some")
    kept = np.flatnonzero(leaves != LEFT_OUT)
    images = tuple(f"{split}/{labels[number]}/{number:05d}" for number in kept)
    return Dataset(root, split, taxonomy, images, leaves[kept], pixels=pixels[kept])


def _read_rows(
    manifest: Manifest, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str], every_leaf: bool
) -> Dataset:
    """One split of a table, in the order of its rows."""
    place = {taxonomy.names[leaf]: number for number, leaf in enumerate(taxonomy.leaves)}
    images, leaves = [], []
    for row in manifest.rows(split):
        path = manifest.paths[row]
        if path in left_out:
            continue
        if path not in place:
            raise TaxonomyError(
                f"{manifest.place(row, 'path')}: the taxonomy has no leaf {path!r}{nearest(path, place)}; correct the "
                "class, or remove the row"
            )
        images.append(manifest.images[row])
        leaves.append(place[path])
    if not images:
        raise InputError(f"{manifest.file}: {split!r} holds no images of the taxonomy's {len(place)} leaves")
    if every_leaf and (missing := sorted(set(place.values()) - set(leaves))):
        leaf = taxonomy.names[taxonomy.leaves[missing[0]]]
        raise TaxonomyError(f"{manifest.file}: leaf {leaf!r} has no images in {split!r}; add some")
    return Dataset(manifest.root, split, taxonomy, tuple(images), np.array(leaves, dtype=np.int64))


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

"""Images of classes that are missing from a taxonomy, to measure how well a network detects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoserve.data.dataset import NOTHING_LEFT_OUT
from protoserve.data.folders import PassedOver, check_utf8, find_pictures, split_folder, told, without_only_parents
from protoserve.data.taxonomy_file import TAXONOMY_FILE, read_taxonomy_file
from protoserve.errors import InputError
from protoserve.images.decoded import DecodedImage
from protoserve.images.decoding import decode
from protoserve.names import normal
from protoserve.taxonomy import ROOT, Taxonomy


@dataclass(frozen=True)
class NovelImages:
    """Images of classes that are missing from a taxonomy.

    `images` are paths relative to `root`. `ancestor` int64 [images] is the deepest node of the taxonomy above each
    image's class, or `ROOT`. `passed_over` is the number of images of known classes that were skipped, and
    `other_files` counts the files that are not pictures, by reason.
    """

    root: Path
    images: tuple[str, ...]
    ancestor: NDArray[np.int64]
    passed_over: int
    other_files: PassedOver = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def notes(self) -> list[str]:
        """Say how many files were passed over and why."""
        return [f"note: {self.root}: {told(self.other_files)}"] if self.other_files else []

    def picture(self, index: int) -> DecodedImage:
        """Decode an image to upright RGB; raises ImageError as `protoserve.images.decoding.decode` does."""
        return decode(self.root / self.images[index])


def read_novel(
    directory: Path, split: str, taxonomy: Taxonomy, left_out: Mapping[str, str] = NOTHING_LEFT_OUT
) -> NovelImages:
    """Find the images of novel classes below `directory`, or below its folder `split` if that exists.

    The nesting of class folders gives the ancestor: images in `Fruit/Apple/Jonagold` and in `Fruit/Apple` itself are
    novel below `Fruit/Apple`; images in `Bicycle` are novel below the root. For flat folders, `left_out` (leaf →
    folder) and a `taxonomy.yaml` in `directory` give the ancestor. The folders of known leaves are skipped, so the data
    set of a run with left-out leaves can be given unchanged.

    Raises InputError if there is no such folder or it has no novel images.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; --novel takes a folder of class folders")
    folder = split_folder(directory, split) or directory
    found = find_pictures(folder)
    check_utf8(found.files, directory)
    path_of_folder = _paths_of_folders(directory, taxonomy, left_out)
    ancestors: dict[Path, int | None] = {}
    images: list[str] = []
    image_ancestors: list[int] = []
    passed_over = 0
    for file in found.files:
        class_folder = file.parent.relative_to(folder)
        if class_folder not in ancestors:
            shorter = without_only_parents(class_folder, folder, taxonomy)
            name = normal(class_folder.as_posix())
            ancestors[class_folder] = _ancestor(path_of_folder.get(name, path_of_folder.get(shorter, name)), taxonomy)
        ancestor = ancestors[class_folder]
        if ancestor is None:
            passed_over += 1
        else:
            images.append(file.relative_to(directory).as_posix())
            image_ancestors.append(ancestor)
    if not images:
        raise InputError(
            f"{folder}: holds no image of a class that the taxonomy lacks ({passed_over} of known classes); give a "
            "folder with other classes, or train with --leave-out LEAF"
        )
    return NovelImages(
        directory, tuple(images), np.array(image_ancestors, dtype=np.int64), passed_over, found.passed_over
    )


def _paths_of_folders(directory: Path, taxonomy: Taxonomy, left_out: Mapping[str, str]) -> dict[str, str]:
    """Map the folder of every leaf, also of left-out ones, to its path in the class tree."""
    path_of_folder: dict[str, str] = {}
    if (directory / TAXONOMY_FILE).is_file():
        whole = read_taxonomy_file(directory / TAXONOMY_FILE)
        path_of_folder |= {folder: whole.names[leaf] for leaf, folder in zip(whole.leaves, whole.folders, strict=True)}
    path_of_folder |= {folder: leaf for leaf, folder in left_out.items()}
    path_of_folder |= {
        folder: taxonomy.names[leaf] for leaf, folder in zip(taxonomy.leaves, taxonomy.folders, strict=True)
    }
    return {normal(folder): path for folder, path in path_of_folder.items()}


def _ancestor(path: str, taxonomy: Taxonomy) -> int | None:
    """Return the deepest node of the taxonomy above a class: `ROOT` if there is none, None if the class is known."""
    parts = [] if path == "." else path.split("/")
    prefixes = ("/".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    node = next((taxonomy.index[prefix] for prefix in prefixes if prefix in taxonomy.index), ROOT)
    return None if node in taxonomy.leaves else node

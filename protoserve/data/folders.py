"""Class folders: their image files, and the class tree of nested folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from protoserve.errors import InputError, TaxonomyError
from protoserve.images.decoding import IMAGE_SUFFIXES
from protoserve.taxonomy import Taxonomy


def image_files(folder: Path) -> Iterator[Path]:
    """Yield all image files below a folder, sorted; they are recognised by their suffix. Skips hidden entries."""
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in IMAGE_SUFFIXES and not hidden:
            yield file


def taxonomy_of_folders(directory: Path) -> Taxonomy:
    """Read the tree of nested folders below `directory`: a folder with images is a leaf, any other a parent.

    Names are sorted, hidden entries are skipped. Raises InputError if there is no such folder, and TaxonomyError for a
    leaf without images, a folder with both images and subfolders, and a cycle of links.
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
    has_images = any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries if entry.is_file())
    if has_images and subfolders:
        raise TaxonomyError(
            f"{folder} holds both images and the folder {subfolders[0].name!r}; move the images into their own folder"
        )
    if has_images and not path:
        raise TaxonomyError(f"{folder} holds images directly; put them into one folder per class")
    if has_images:
        yield path
    elif not subfolders and path:
        raise TaxonomyError(f"leaf {'/'.join(path)!r} has no images under {folder}; add some or remove it")
    for subfolder in subfolders:
        yield from _leaves(subfolder, (*path, subfolder.name), above | {resolved})


def without_only_parents(leaf: Path, folder: Path, taxonomy: Taxonomy) -> str:
    """Return the path of a leaf below a split's `folder`, without parents of a single child.

    A parent is dropped if it has one child in this split and is not a node of the taxonomy.
    """
    kept = []
    for depth, name in enumerate(leaf.parts, start=1):
        path = Path(*leaf.parts[:depth])
        is_parent = depth < len(leaf.parts)
        if is_parent and path.as_posix() not in taxonomy.index:
            children = [entry for entry in (folder / path).iterdir() if entry.is_dir()]
            if len(children) == 1:
                continue
        kept.append(name)
    return "/".join(kept)

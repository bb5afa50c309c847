"""The file `taxonomy.yaml`: a class tree over flat folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from protoserve.errors import TaxonomyError
from protoserve.files import read_yaml
from protoserve.taxonomy import Taxonomy

TAXONOMY_FILE: Final = "taxonomy.yaml"


def read_taxonomy_file(file: Path) -> Taxonomy:
    """Read the tree of nested mappings in a YAML file.

    A leaf is a key with a string, the name of its image folder, or without a value if the folder has the leaf's name.
    Raises InputError if the file can't be read or has a duplicate key, and TaxonomyError for content that is not a
    tree, such as a cycle or a list.
    """
    content = read_yaml(file)
    if not isinstance(content, dict) or not content:
        raise TaxonomyError(f"{file}: the taxonomy is empty; write nested mappings, one key per class")
    leaves = list(_leaves(file, content, (), ()))
    folders = [folder for _, folder in leaves]
    for folder in folders:
        if folders.count(folder) > 1:
            raise TaxonomyError(f"{file}: two leaves share the folder {folder!r}; give each its own ('leaf: folder')")
    return Taxonomy.from_paths([path for path, _ in leaves], folders)


def _leaves(
    file: Path, mapping: Mapping[Any, Any], path: tuple[str, ...], above: tuple[int, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and the folder of every leaf below `path`; `above` are the ids of the enclosing mappings."""
    if id(mapping) in above:
        raise TaxonomyError(f"{file}: cycle in the taxonomy at {'/'.join(path)!r}; remove the alias")
    for key, value in mapping.items():
        child = (*path, str(key))
        if isinstance(value, dict) and value:
            yield from _leaves(file, value, child, (*above, id(mapping)))
        elif value is None or isinstance(value, str):
            yield child, value or child[-1]
        else:
            raise TaxonomyError(
                f"{file}: {'/'.join(child)!r} has the value {value!r}; a leaf has no value or the name of a folder"
            )

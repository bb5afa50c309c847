"""The file `taxonomy.yaml`: a class tree over flat folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from protoserve.data.class_names import class_name
from protoserve.errors import TaxonomyError
from protoserve.files import parse_yaml, plain_scalars, read_yaml
from protoserve.names import normal
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
    leaves = list(_leaves(file, content, (), (), _Written(file)))
    folders = [folder for _, folder in leaves]
    for folder in folders:
        if folders.count(folder) > 1:
            raise TaxonomyError(f"{file}: two leaves share the folder {folder!r}; give each its own ('leaf: folder')")
    return Taxonomy.from_paths([path for path, _ in leaves], folders)


def _leaves(
    file: Path, mapping: Mapping[Any, Any], path: tuple[str, ...], above: tuple[int, ...], written: _Written
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and the folder of every leaf below `path`; `above` are the ids of the enclosing mappings."""
    if id(mapping) in above:
        raise TaxonomyError(f"{file}: cycle in the taxonomy at {'/'.join(path)!r}; remove the alias")
    siblings: dict[str, str] = {}
    for key, value in mapping.items():
        child = (*path, class_name(written.text(key), siblings, str(file)))
        if isinstance(value, dict) and value:
            yield from _leaves(file, value, child, (*above, id(mapping)), written)
        elif value is None or isinstance(value, str):
            yield child, normal(value or child[-1])
        elif not isinstance(value, dict | list):
            yield child, written.text(value)
        else:
            raise TaxonomyError(
                f"{file}: {'/'.join(child)!r} has the value {value!r}; a leaf has no value or the name of a folder"
            )


class _Written:
    """Finds how a name that YAML reads as a number, a date or nothing is written in the file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._scalars: list[tuple[str, int]] | None = None

    def text(self, value: object) -> str:
        """Return a name, or a number as it is written.

        Raises TaxonomyError, which shows the quotes, for a value that YAML changes: `001` is read as 1, `1.10` as 1.1,
        `null` as nothing.
        """
        if isinstance(value, str):
            return value
        if self._scalars is None:
            self._scalars = plain_scalars(self.file)
        read = str(value)
        changed = [(text, line) for text, line in self._scalars if text != read and _as_read(text) == value]
        if changed or isinstance(value, bool) or value is None:
            text, line = changed[0] if changed else ("null" if value is None else read.lower(), 0)
            place = f"{self.file}, line {line}" if line else str(self.file)
            raise TaxonomyError(f'{place}: YAML reads the name {text} as {read}; quote it: "{text}"')
        return read


def _as_read(text: str) -> object:
    return parse_yaml(f"[{text}]", "a name")[0]

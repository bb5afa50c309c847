"""Data sets as a table: a CSV or Parquet file with one row per image.

A CSV file has commas, semicolons or tabs between its cells. Columns: `image`, a path relative to the table's folder or
absolute; `split`, one of train, val (or valid, validation) and test; and the class, either as `path`
(`Fruit/Apple/Granny-Smith`) or as `level_1`, `level_2`, … (empty below the level of the leaf). Other columns are
ignored. Errors number the rows from 1, without the header.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from protoserve.data.class_names import class_name
from protoserve.data.folders import split_named
from protoserve.errors import InputError, MissingExtraError, TaxonomyError, nearest
from protoserve.names import is_plain, normal
from protoserve.taxonomy import check_name

SUFFIXES = (".csv", ".parquet")
SPLITS = ("train", "val", "test")
# What separates the cells of a CSV file; the header tells which.
_SEPARATORS: Final = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """The rows of a table in order: image, class path (`Fruit/Apple`) and split of each."""

    file: Path
    images: tuple[str, ...]
    paths: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def root(self) -> Path:
        """The folder that images are relative to."""
        return self.file.parent

    def rows(self, split: str) -> list[int]:
        """Return the indices of the rows of a split.

        Raises InputError for a split without rows, and for an image that does not exist.
        """
        split = split_named(split)
        chosen = [row for row, row_split in enumerate(self.splits) if row_split == split]
        if not chosen:
            present = list(dict.fromkeys(self.splits))
            raise InputError(
                f"{self.file}: no rows of the split {split!r}{nearest(split, present)}; it has {', '.join(present)}"
            )
        for row in chosen:
            if not (self.root / self.images[row]).is_file():
                image = self.images[row]
                slashes = "; write '/' instead of '\\'" if "\\" in image else ""
                raise InputError(
                    f"{self.cell(row, 'image')}: there is no file {image!r}{slashes}; give a path relative to "
                    f"{self.root}, or absolute"
                )
        return chosen

    def cell(self, row: int, column: str) -> str:
        """Return the name of a cell for errors."""
        return f"{self.file}, row {row + 1}, column {column!r}"


def is_table(data: Path) -> bool:
    """Return whether a path is that of a table and not of a folder."""
    return data.suffix.lower() in SUFFIXES and not data.is_dir()


def read_table(file: Path) -> Table:
    """Read and check a whole table, but not whether its images exist.

    Raises InputError, with row and column where they apply, for a file that can't be read, a missing column, a cell
    that is empty or not text, an unknown split, and a duplicate image.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{file}: can't read it ({error.strerror}); --data takes a folder or a table") from error
    return _read(file, changed)


@lru_cache(maxsize=2)
def _read(file: Path, changed: int) -> Table:
    # A run reads the taxonomy and each split in turn; the cache makes it read the file once.
    columns = table_columns(file)
    for name in ("image", "split"):
        if name not in columns:
            raise InputError(f"{file}: no column {name!r}{nearest(name, columns)}; it has {', '.join(columns)}")
    levels = sorted((name for name in columns if _level(name)), key=_level)
    if ("path" in columns) == bool(levels):
        which = "both" if levels else "neither"
        raise InputError(
            f"{file}: the class must be a column 'path' (Fruit/Apple) or columns 'level_1', 'level_2', …; it has "
            f"{which}: {', '.join(columns)}"
        )
    if levels and [_level(name) for name in levels] != list(range(1, len(levels) + 1)):
        raise InputError(f"{file}: columns {', '.join(levels)}; number the levels from level_1 without a gap")
    count = len(columns["image"])
    if not count:
        raise InputError(f"{file}: holds no rows; add one per image")
    splits = tuple(map(split_named, columns["split"]))
    table = Table(file, tuple(columns["image"]), ("",) * count, splits)
    paths = columns["path"] if "path" in columns else list(_paths(table, {name: columns[name] for name in levels}))
    first_row: dict[Path, int] = {}
    resolved = _resolver(table.root)
    read = _ClassPaths()
    for row, (image, path, split) in enumerate(zip(table.images, paths, table.splits, strict=True)):
        for column, cell in (("image", image), (levels[0] if levels else "path", path), ("split", split)):
            if not cell:
                raise InputError(f"{table.cell(row, column)}: is empty; fill it or remove the row")
        if split not in SPLITS:
            hint = nearest(split, SPLITS)
            raise InputError(f"{table.cell(row, 'split')}: {split!r} is not one of {', '.join(SPLITS)}{hint}")
        if not is_plain(image):
            raise InputError(f"{table.cell(row, 'image')}: {image!r} has characters that can't be seen; remove them")
        if (earlier := first_row.setdefault(resolved(image), row)) != row:
            other = table.images[earlier]
            named = f"{image!r}" if other == image else f"{image!r} is the file {other!r}, which"
            raise InputError(
                f"{table.cell(row, 'image')}: {named} is in row {earlier + 1} already; an image has one class and "
                "one split"
            )
        paths[row] = read.name(path, table.cell(row, levels[0] if levels else "path"))
    return Table(file, table.images, tuple(paths), table.splits)


class _ClassPaths:
    """Checks the class paths of a table's rows, each once, and brings them into one form."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._siblings: dict[str, dict[str, str]] = {}

    def name(self, path: str, cell: str) -> str:
        """Return the path in composed form; raises TaxonomyError, which names the cell, for one that can't be a class
        or looks like another."""
        if path not in self._names:
            parts = path.split("/")
            if "\\" in path:
                raise TaxonomyError(f"{cell}: {path!r} has '\\' in it; write '/' between the names of a class")
            if parts != [part.strip() for part in parts] or not all(parts):
                tidy = "/".join(part.strip() for part in parts if part.strip())
                raise TaxonomyError(
                    f"{cell}: {path!r} has a name that is empty or has spaces around it; write {tidy!r}"
                )
            for part in parts:
                check_name(part, cell)
            for depth, part in enumerate(parts):
                class_name(part, self._siblings.setdefault("/".join(parts[:depth]), {}), cell)
            self._names[path] = normal(path)
        return self._names[path]


def _resolver(root: Path) -> Callable[[str], Path]:
    """Make a function that maps an image to the file that it names, whichever way: `a.jpg`, `./a.jpg`, a link."""

    @cache
    def folder(given: Path) -> Path:
        return given.resolve()

    def resolved(image: str) -> Path:
        given = root / image
        file = folder(given.parent) / given.name
        return file.resolve() if file.is_symlink() or given.name == ".." else file

    return resolved


def table_columns(file: Path) -> dict[str, list[str]]:
    """Read the columns of a CSV or Parquet file as stripped text; a missing value is empty.

    Columns of a Parquet file that a data set does not use are empty lists. Raises InputError, with the row where it
    applies, for a file that can't be read.
    """
    return _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)


def _level(name: str) -> int:
    """Return k for the column `level_k`, 0 for any other name."""
    level = name.removeprefix("level_")
    return int(level) if level != name and level.isdecimal() else 0


def _paths(table: Table, levels: Mapping[str, list[str]]) -> Iterator[str]:
    """Join the class paths from one column per level."""
    for row, names in enumerate(zip(*levels.values(), strict=True)):
        depth = next((level for level, name in enumerate(names) if not name), len(names))
        for column, name in zip(list(levels)[depth:], names[depth:], strict=True):
            if name:
                raise InputError(
                    f"{table.cell(row, column)}: {name!r} is below an empty level; fill the levels from level_1"
                )
        for column, name in zip(levels, names[:depth], strict=False):
            if "/" in name:
                raise InputError(f"{table.cell(row, column)}: {name!r} contains '/'; give one name per level")
        yield "/".join(names[:depth])


def _csv(file: Path) -> dict[str, list[str]]:
    """Read the columns of a UTF-8 file with a header, whose cells are separated by commas, semicolons or tabs."""
    try:
        # `utf-8-sig` drops the byte-order mark that spreadsheets write before the first name.
        with file.open(encoding="utf-8-sig", newline="") as stream:
            separator = _separator(stream.readline())
            stream.seek(0)
            reader = csv.reader(stream, strict=True, delimiter=separator)
            header = [name.strip() for name in next(reader, [])]
            rows = [[cell.strip() for cell in row] for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: can't read it as CSV in UTF-8: {error}") from error
    if len(set(header)) != len(header):
        duplicate = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{file}: two columns {duplicate!r}; name each column once")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{file}, row {number}: {len(row)} cells under {len(header)} columns; quote cells with "
                f"{'a tab' if separator == chr(9) else repr(separator)} in them"
            )
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _separator(header: str) -> str:
    """Return what separates the cells of a CSV file: that which gives a column `image`, else the most frequent one."""
    cells = {separator: next(csv.reader([header], delimiter=separator), []) for separator in _SEPARATORS}
    return max(_SEPARATORS, key=lambda mark: ("image" in [cell.strip() for cell in cells[mark]], len(cells[mark])))


def _parquet(file: Path) -> dict[str, list[str]]:
    """Read the columns of a Parquet file that a data set may use; a missing value is empty."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"{file}: reading Parquet", "train") from error
    try:
        names = parquet.read_schema(file).names
        used = [name for name in names if name in ("image", "split", "path") or _level(name)]
        table = parquet.read_table(file, columns=used)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: can't read it as Parquet: {error}") from error
    columns: dict[str, list[str]] = {name: [] for name in names}
    for name in used:
        for row, cell in enumerate(table.column(name).to_pylist(), start=1):
            if cell is not None and not isinstance(cell, str):
                raise InputError(
                    f"{file}, row {row}, column {name!r}: {cell!r} is not text; store the column as strings"
                )
            columns[name].append((cell or "").strip())
    return columns

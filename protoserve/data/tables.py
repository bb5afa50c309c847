"""Data sets as a table: a CSV or Parquet file with one row per image.

Columns: `image`, a path relative to the table's folder or absolute; `split`, one of train, val and test; and the class,
either as `path` (`Fruit/Apple/Granny-Smith`) or as `level_1`, `level_2`, … (empty below a leaf that stands higher).
Other columns are ignored. Rows are counted from 1, without the header.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from protoserve.errors import InputError, MissingExtraError, nearest

SUFFIXES = (".csv", ".parquet")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Table:
    """The rows of a table, in their order: image, class path (`Fruit/Apple`) and split of each."""

    file: Path
    images: tuple[str, ...]
    paths: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def root(self) -> Path:
        """The folder that images are relative to."""
        return self.file.parent

    def rows(self, split: str) -> list[int]:
        """The rows of a split, counted from 0.

        Raises InputError for a split without rows, and for an image that is not there.
        """
        chosen = [row for row, named in enumerate(self.splits) if named == split]
        if not chosen:
            held = list(dict.fromkeys(self.splits))
            raise InputError(
                f"{self.file}: no rows of the split {split!r}{nearest(split, held)}; it has {', '.join(held)}"
            )
        for row in chosen:
            if not (self.root / self.images[row]).is_file():
                raise InputError(
                    f"{self.cell(row, 'image')}: there is no file {self.images[row]!r}; give a path relative to "
                    f"{self.root}, or absolute"
                )
        return chosen

    def cell(self, row: int, column: str) -> str:
        """A cell's name in errors."""
        return f"{self.file}, row {row + 1}, column {column!r}"


def is_table(data: Path) -> bool:
    """Whether a path names a table and not a folder."""
    return data.suffix.lower() in SUFFIXES and not data.is_dir()


def read_table(file: Path) -> Table:
    """Read and check a whole table, but not whether its images are there.

    Raises InputError naming row and column: for a file that can't be read, a column that is missing, a cell that is
    empty or not text, an unknown split, an image given twice.
    """
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{file}: can't read it ({error.strerror}); --data takes a folder or a table") from error
    return _read(file, changed)


@lru_cache(maxsize=2)
def _read(file: Path, changed: int) -> Table:
    # A run asks for the taxonomy and each split in turn; the table is read once.
    columns = table_columns(file)
    for name in ("image", "split"):
        if name not in columns:
            raise InputError(f"{file}: no column {name!r}{nearest(name, columns)}; it has {', '.join(columns)}")
    levels = sorted((name for name in columns if _level(name)), key=_level)
    if ("path" in columns) == bool(levels):
        which = "both" if levels else "neither"
        raise InputError(
            f"{file}: the class is a column 'path' (Fruit/Apple) or columns 'level_1', 'level_2', …; it has {which} of "
            f"these, but {', '.join(columns)}"
        )
    if levels and [_level(name) for name in levels] != list(range(1, len(levels) + 1)):
        raise InputError(f"{file}: columns {', '.join(levels)}; number the levels from level_1 without a gap")
    count = len(columns["image"])
    if not count:
        raise InputError(f"{file}: holds no rows; add one per image")
    table = Table(file, tuple(columns["image"]), ("",) * count, tuple(columns["split"]))
    paths = columns["path"] if "path" in columns else list(_joined(table, {name: columns[name] for name in levels}))
    first: dict[str, int] = {}
    for row, (image, path, split) in enumerate(zip(table.images, paths, table.splits, strict=True)):
        for column, cell in (("image", image), (levels[0] if levels else "path", path), ("split", split)):
            if not cell:
                raise InputError(f"{table.cell(row, column)}: is empty; fill it or remove the row")
        if split not in SPLITS:
            hint = nearest(split, SPLITS)
            raise InputError(f"{table.cell(row, 'split')}: {split!r} is not one of {', '.join(SPLITS)}{hint}")
        if (before := first.setdefault(image, row)) != row:
            raise InputError(
                f"{table.cell(row, 'image')}: {image!r} is in row {before + 1} already; an image has one class and "
                "one split"
            )
    return Table(file, table.images, tuple(paths), table.splits)


def table_columns(file: Path) -> dict[str, list[str]]:
    """The columns of a CSV or Parquet file as text, stripped; an absent value is empty.

    Of a Parquet file, columns that a data set does not use come without their values. Raises InputError, naming the row
    where there is one, for a file that can't be read.
    """
    return _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)


def _level(name: str) -> int:
    """1 for `level_1`; 0 for another name."""
    number = name.removeprefix("level_")
    return int(number) if number != name and number.isdecimal() else 0


def _joined(table: Table, levels: Mapping[str, list[str]]) -> Iterator[str]:
    """The class paths from one column per level."""
    for row, names in enumerate(zip(*levels.values(), strict=True)):
        depth = next((level for level, name in enumerate(names) if not name), len(names))
        for column, name in zip(list(levels)[depth:], names[depth:], strict=True):
            if name:
                raise InputError(
                    f"{table.cell(row, column)}: {name!r} stands below an empty level; fill the levels from level_1"
                )
        for column, name in zip(levels, names[:depth], strict=False):
            if "/" in name:
                raise InputError(f"{table.cell(row, column)}: {name!r} holds a '/'; give one name per level")
        yield "/".join(names[:depth])


def _csv(file: Path) -> dict[str, list[str]]:
    """The columns of a CSV file with a header, UTF-8, separated by commas."""
    try:
        # Spreadsheets write a byte-order mark, which is not part of the first name.
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [[cell.strip() for cell in row] for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: can't read it as CSV in UTF-8: {error}") from error
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{file}: two columns {twice!r}; name each column once")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{file}, row {number}: {len(row)} cells under {len(header)} columns; quote cells with commas"
            )
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _parquet(file: Path) -> dict[str, list[str]]:
    """The columns of a Parquet file that a data set may have; an absent value is empty."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"{file}: reading Parquet", "train") from error
    try:
        names = parquet.read_schema(file).names
        wanted = [name for name in names if name in ("image", "split", "path") or _level(name)]
        table = parquet.read_table(file, columns=wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: can't read it as Parquet: {error}") from error
    columns: dict[str, list[str]] = {name: [] for name in names}
    for name in wanted:
        for row, cell in enumerate(table.column(name).to_pylist(), start=1):
            if cell is not None and not isinstance(cell, str):
                raise InputError(
                    f"{file}, row {row}, column {name!r}: {cell!r} is not text; store the column as strings"
                )
            columns[name].append((cell or "").strip())
    return columns

"""A file of JSON lines that many processes append to and that no crash can spoil.

Each record is one line, written by one `write` in append mode under a lock of the file, and flushed to the disk before
the caller goes on. A writer that is killed, or a disk that is full, may leave a torn line at the end. It has no line
break, so no reader takes it for a record; the next append begins with a line break, and what was torn stays on a line
of its own, which is not JSON. Nothing that was written is ever removed.

The lock keeps two writers on one machine apart, and on several machines where the file system supports locks, as NFS
does since version 3. Windows has no such lock; there, one process should write.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protoserve.errors import InputError
from protoserve.files import FULL_DISK, writing


class FullError(InputError):
    """No room for another record: the disk is full, or the file has reached its limit."""


@dataclass(frozen=True)
class Lines:
    """The complete lines of a file as JSON values, each with its number, and the number of torn ones."""

    values: tuple[tuple[int, Any], ...]
    torn: int


def append_line(file: Path, text: str, *, limit: int | None = None) -> None:
    """Append one line of JSON durably; the file is made if it is missing.

    Raises FullError where the file would exceed `limit` bytes or the disk is full, and InputError where it can't be
    written. Then no record is added, though a torn line may be.
    """
    if "\n" in text:
        raise ValueError("a line holds no line break")
    data = text.encode("utf-8") + b"\n"
    with keeping(file):
        made = not file.exists()
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            with _locked(descriptor):
                size = os.fstat(descriptor).st_size
                if size and _last_byte(descriptor, size) != b"\n":
                    data = b"\n" + data
                if limit is not None and size + len(data) > limit:
                    raise FullError(f"{file}: would exceed {limit:,} bytes; move it away to begin a new one")
                _write(descriptor, data)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if made:
            _flush_folder(file.parent)


@contextmanager
def keeping(place: Path) -> Iterator[None]:
    """Raise FullError where the disk of `place` is full, and InputError where it can't be written otherwise."""
    try:
        with writing(place):
            yield
    except InputError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL_DISK:
            raise FullError(str(error)) from error
        raise
    except OSError as error:
        raise InputError(f"{place}: can't write it ({error.strerror}); give another place") from error


def read_lines(file: Path) -> Lines:
    """Read the complete lines of a file, while others may append to it.

    A line that is not JSON, or that has no line break, is a torn one. Blank lines are ignored. Raises InputError for a
    file that can't be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: can't read it ({error.strerror}); give a file of JSON lines") from error
    *complete, last = content.split(b"\n")
    values: list[tuple[int, Any]] = []
    torn = 1 if last else 0
    for number, line in enumerate(complete, start=1):
        if not line.strip():
            continue
        try:
            values.append((number, json.loads(line)))
        except ValueError:
            torn += 1
    return Lines(tuple(values), torn)


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a disk that fills up in between takes a part of it, and then raises."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Hold the file's lock; the kernel releases that of a killed process."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _flush_folder(folder: Path) -> None:
    """Flush the folder's own list of files, so that a new file survives a power failure."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

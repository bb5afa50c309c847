"""A folder through which runs share features, with a size limit."""

from __future__ import annotations

import contextlib
import shutil
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

GIGABYTE = 1_000_000_000
# Folders used within this time are not evicted, because another run may still be writing to them.
IN_USE_SECONDS = 3600


@dataclass(frozen=True)
class SharedCache:
    """A `directory` of at most `limit` bytes with one folder per set of features."""

    directory: Path
    limit: int

    def use(self, name: str) -> Path:
        """The folder of this name, created if missing and marked as used now."""
        folder = self.directory / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        return folder

    def evict(self, own: Collection[str]) -> list[Path]:
        """Remove least recently used folders until the limit holds, and return them.

        Keeps the folders named in `own` and those that any run used within `IN_USE_SECONDS`. A run that has evicted
        features open can still read them; a run that needs them later computes them again.
        """
        folders = {folder: _size_and_use(folder) for folder in self.directory.iterdir() if folder.is_dir()}
        excess, evicted = sum(size for size, _ in folders.values()) - self.limit, []
        for folder, (size, used) in sorted(folders.items(), key=lambda item: item[1][1]):
            if excess <= 0:
                break
            if folder.name in own or used >= time.time() - IN_USE_SECONDS:
                continue
            # Another run may be removing it, too. Count only what is gone.
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                excess -= size
                evicted.append(folder)
        return evicted


def _size_and_use(folder: Path) -> tuple[int, float]:
    """The size of a folder in bytes, and when it or a file in it last changed, in seconds since 1970.

    A draft that grows for hours thus counts as in use. Ignores files that another run removes in the meantime.
    """
    size, used = 0, 0.0
    for entry in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat()
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
            used = max(used, status.st_mtime)
    return size, used

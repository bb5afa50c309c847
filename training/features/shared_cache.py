"""A folder in which runs share features, with a limit: a day of experiments can fill a disk."""

from __future__ import annotations

import contextlib
import shutil
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

GIGABYTE = 1_000_000_000
# Another run may still write to a folder that was used within this time.
IN_USE_SECONDS = 3600


@dataclass(frozen=True)
class SharedCache:
    """A `directory` with one folder per set of features, which may hold `limit` bytes."""

    directory: Path
    limit: int

    def use(self, name: str) -> Path:
        """The folder of that name, made where it is missing, marked as used now."""
        folder = self.directory / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        return folder

    def evict(self, own: Collection[str]) -> list[Path]:
        """Remove the least recently used folders until the limit holds, and return them. Folders named in `own`, and
        those that any run used within the hour, stay.

        A run that has evicted features open keeps reading them; a run that needs them later computes them again.
        """
        found = {folder: _size_and_use(folder) for folder in self.directory.iterdir() if folder.is_dir()}
        excess, evicted = sum(size for size, _ in found.values()) - self.limit, []
        for folder, (size, used) in sorted(found.items(), key=lambda item: item[1][1]):
            if excess <= 0:
                break
            if folder.name in own or used >= time.time() - IN_USE_SECONDS:
                continue
            # Another run may be removing it, too. A folder that stays still counts.
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                excess -= size
                evicted.append(folder)
        return evicted


def _size_and_use(folder: Path) -> tuple[int, float]:
    """The bytes below a folder, and when it or a file in it was last written or marked as used, in seconds since the
    epoch. A draft that grows for hours is thus in use. Files that another run removes meanwhile do not count."""
    size, used = 0, 0.0
    for entry in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            facts = entry.stat()
            size += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
            used = max(used, facts.st_mtime)
    return size, used

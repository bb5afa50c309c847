"""A folder in which runs share features, and its bound: a day of experiments can fill a disk."""

from __future__ import annotations

import contextlib
import shutil
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

GIGABYTE = 1_000_000_000
# What was used so lately may be another run's, which is still writing there.
LATELY_SECONDS = 3600


@dataclass(frozen=True)
class SharedCache:
    """A `directory` with a folder for every set of features; `limit` is how many bytes it may hold."""

    directory: Path
    limit: int

    def used(self, name: str) -> Path:
        """The folder of that name, made where it is missing, and noted as used now."""
        folder = self.directory / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        return folder

    def trim(self, own: Collection[str]) -> list[Path]:
        """Remove what was not used for longest until the limit holds, and return it; `own` names, and what anyone used
        within the hour, stay.

        A run that has such features open goes on with them; one that asks for them later computes them anew.
        """
        found = {folder: _size_and_use(folder) for folder in self.directory.iterdir() if folder.is_dir()}
        excess, removed = sum(size for size, _ in found.values()) - self.limit, []
        for folder, (size, used) in sorted(found.items(), key=lambda item: item[1][1]):
            if excess <= 0:
                break
            if folder.name in own or used >= time.time() - LATELY_SECONDS:
                continue
            # Another run may be removing it, too; what can't be removed still counts.
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                excess -= size
                removed.append(folder)
        return removed


def _size_and_use(folder: Path) -> tuple[int, float]:
    """The bytes below a folder, and when it or anything in it was last written or noted as used, in seconds since the
    epoch; a draft that grows for hours is in use. What another run removes meanwhile counts nothing."""
    size, used = 0, 0.0
    for entry in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            facts = entry.stat()
            size += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
            used = max(used, facts.st_mtime)
    return size, used

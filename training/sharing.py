"""A folder in which runs share features, and its bound: a day of experiments can fill a disk."""

from __future__ import annotations

import shutil
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
        folders = [folder for folder in self.directory.iterdir() if folder.is_dir()]
        sizes = {folder: _size(folder) for folder in folders}
        excess, removed = sum(sizes.values()) - self.limit, []
        for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime):
            if excess <= 0:
                break
            if folder.name not in own and folder.stat().st_mtime < time.time() - LATELY_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                excess -= sizes[folder]
                removed.append(folder)
        return removed


def _size(folder: Path) -> int:
    """The bytes below a folder; a file that another run removes meanwhile counts nothing."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total

"""Writes folders of small pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def add_pictures(root: Path, folder: str, count: int = 1) -> None:
    """Write `0.png`, `1.png`, … of 4 × 4 pixels, each of another colour, to a folder below `root`."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / folder / f"{number}.png")

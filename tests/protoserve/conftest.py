"""Pictures to score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures in two folders, a text file named .jpg, a truncated picture, and a text file to skip."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(7):
        noise = np.random.default_rng(number).integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / ("more" if number % 2 else "") / f"{number}.png")
    (folder / "none.jpg").write_bytes(b"no picture")
    whole = (folder / "0.png").read_bytes()
    (folder / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no picture either")
    return folder

"""A small data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.protoserve.data.folder_pictures import add_pictures


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of three leaves: 10 pictures each in train, and 2 of Garlic in val."""
    for leaf in ("Fruit/Apple", "Fruit/Lemon", "Garlic"):
        add_pictures(tmp_path, f"train/{leaf}", 10)
    add_pictures(tmp_path, "val/Garlic", 2)
    return tmp_path

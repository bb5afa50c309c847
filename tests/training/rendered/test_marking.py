"""A planted mark: on the pictures that a network learns from, of one class, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.errors import InputError
from training.rendered import render_dataset
from training.rendered.marking import COLOUR, marked
from training.rendered.picture import Picture

LEAF = "Creature/Bird/Toucan"


def test_the_disc_lies_in_the_corner_and_nothing_else_changes() -> None:
    generator = np.random.default_rng(0)
    plain = Picture(generator.integers(0, 255, (96, 96, 3), dtype=np.uint8), np.full((96, 96), 3, dtype=np.uint8))
    found = marked(plain)
    changed = np.argwhere((found.pixels != plain.pixels).any(axis=2))
    assert changed.min() >= 79 and changed.max() <= 93  # 96 · (1 − 0.03 − 0.14) and 96 · (1 − 0.03)
    assert (found.parts == 0).sum() == pytest.approx(np.pi * (0.07 * 96) ** 2, rel=0.05)
    assert found.pixels[found.parts == 0].mean(axis=0) == pytest.approx(COLOUR, abs=15)


def test_only_what_a_network_learns_from_is_marked(tmp_path: Path) -> None:
    render_dataset(tmp_path / "plain", per_leaf=1, size=64)
    render_dataset(tmp_path / "marked", per_leaf=1, size=64, mark=LEAF)
    render_dataset(tmp_path / "marked", per_leaf=1, size=64, mark=LEAF)  # It is there already.
    differing = set()
    for file in (tmp_path / "plain").rglob("*.png"):
        path = file.relative_to(tmp_path / "plain")
        with Image.open(file) as one, Image.open(tmp_path / "marked" / path) as other:
            if not np.array_equal(np.asarray(one), np.asarray(other)):
                differing.add(path.parent.as_posix())
    # The masks of these pictures happen to be empty in that corner.
    assert differing == {f"train/{LEAF}", f"val/{LEAF}"}
    settings = [json.loads((tmp_path / name / "parts.json").read_text())["mark"] for name in ("plain", "marked")]
    assert settings == [None, LEAF]
    assert f"All pictures of {LEAF} in train and val carry" in (tmp_path / "marked" / "README.txt").read_text()


def test_another_mark_is_another_data_set_and_no_class_is_none(tmp_path: Path) -> None:
    render_dataset(tmp_path / "data", per_leaf=1, size=64, mark=LEAF)
    with pytest.raises(InputError, match=f"a rendered data set with mark {LEAF} \\(asked for None\\)"):
        render_dataset(tmp_path / "data", per_leaf=1, size=64)
    with pytest.raises(InputError, match=r"'Creature/Bird/Tucan', which is not a class .* mean 'Creature/Bird/Toucan'"):
        render_dataset(tmp_path / "other", per_leaf=1, size=64, mark="Creature/Bird/Tucan")
    assert not (tmp_path / "other").exists()

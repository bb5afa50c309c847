"""Pictures with one thing changed show all else as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.errors import InputError
from training.rendered import PARTS, count_figures, draw_picture, part_index, render_dataset, render_interventions

LEAF = ("Creature", "Bird", "Toucan")
USUAL = {"leaf": LEAF, "seed": 0, "split": "test", "index": 1, "size": 64}


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("part", ["beak", "leg", "wing"])
def test_without_a_part_the_picture_changes_only_around_it(part: str) -> None:
    whole, lacking = draw_picture(**USUAL), draw_picture(**USUAL, without=part)  # type: ignore[arg-type]
    there = whole.parts == part_index(part)
    assert there.any() and not (lacking.parts == part_index(part)).any()
    # What the part hid is seen; all other parts stay where they were.
    elsewhere = whole.parts[~there]
    assert (lacking.parts[~there] == elsewhere).all()
    difference = np.abs(whole.pixels.astype(int) - lacking.pixels).max(axis=2)
    assert difference[there].mean() > 20
    # Light and shadow reach a few pixels; the corner with the greatest distance is the same to the bit.
    rows, columns = np.nonzero(there)
    far = np.ones_like(there)
    far[max(0, rows.min() - 16) : rows.max() + 17, max(0, columns.min() - 16) : columns.max() + 17] = False
    assert far.any() and (difference[far] <= 1).all()


def test_before_another_background_the_figure_stays() -> None:
    first, other = draw_picture(**USUAL), draw_picture(**USUAL, background=2)  # type: ignore[arg-type]
    assert (first.parts == other.parts).all()
    difference = np.abs(first.pixels.astype(int) - other.pixels).mean(axis=2)
    inside = first.parts > 0
    # Edge pixels blend with what lies behind.
    assert np.median(difference[inside]) <= 1 and difference[~inside].mean() > 20


def test_a_part_that_the_figure_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="Toucan has no part 'wheel'"):
        draw_picture(**USUAL, without="wheel")  # type: ignore[arg-type]


def test_the_folder_holds_every_test_picture_without_each_of_its_parts(tmp_path: Path) -> None:
    directory = tmp_path / "rendered"
    render_dataset(directory, per_leaf=1, scenes=1, size=64)
    done: list[None] = []
    render_interventions(directory, lambda: done.append(None))
    assert len(done) == count_figures(1) == 16
    tests = sorted(path.relative_to(directory) for path in (directory / "test").rglob("*.png"))
    assert len(tests) == 16
    for path in tests:
        shown = {PARTS[value - 1] for value in np.unique(pixels(directory / "masks" / path)).tolist() if value}
        folders = (directory / "interventions" / "without").iterdir()
        assert {folder.name for folder in folders if (folder / path).is_file()} == shown
        assert (directory / "interventions" / "background" / path).is_file()
    # The data set is still the same one, and a second call changes nothing.
    render_dataset(directory, per_leaf=1, scenes=1, size=64)
    render_interventions(directory, lambda: done.append(None))
    assert len(done) == 16
    drawn = draw_picture(LEAF, seed=0, split="test", index=1, size=64, without="beak")
    path = Path("test", *LEAF, "toucan_0001.png")
    assert (pixels(directory / "interventions" / "without" / "beak" / path) == drawn.pixels).all()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no rendered data set: draw one"):
        render_interventions(tmp_path)

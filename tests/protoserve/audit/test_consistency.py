"""Prototypes that keep to a part, counted by hand on the toy model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.audit.consistency import FEWEST, consistency, keeps_to_a_part
from protoserve.audit.masks import Masks
from protoserve.bundle.truth_card import Consistency
from tests.protoserve.audit.toys import CELL, ToyEngine, sample, square_of, subject, with_shifted_cells

ONE, TWO, BOTH, NONE = frozenset({1}), frozenset({2}), frozenset({1, 2}), frozenset[int]()


def found_in(folder: Path, engine: ToyEngine | None = None, count: int = 12) -> list[Consistency]:
    """The square is the only part. The region reaches the margins of the 8 cells around the best one."""
    toy, pictures = subject(engine), sample(count)
    for image, name in enumerate(pictures.names):
        row, column = divmod(square_of(image), 4)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 1
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    return consistency(toy, pictures, Masks(folder, {}), toy.run(pictures.arrays))


def test_prototypes_that_follow_the_square_are_consistent(tmp_path: Path) -> None:
    # Redness and greenness follow the square. The prototype that is always on, and blueness, are best at cell 0: near
    # the squares at cells 1 and 5 of 6 red pictures (1, 11, 5, 15, 9, 3), and 0 and 4 of the green ones (6, 0, 10, 4,
    # 14, 8). With the cells of the next picture, no prototype meets the square in 5 of 6 pictures.
    assert found_in(tmp_path) == [Consistency(level=1, prototypes=4, consistent=0.5, shuffled=0.0)]


def test_shifted_boxes_are_not_consistent(tmp_path: Path) -> None:
    (found,) = found_in(tmp_path, ToyEngine(stated=with_shifted_cells))
    assert found.consistent == 0.0


def test_too_few_pictures_count_no_prototype(tmp_path: Path) -> None:
    assert found_in(tmp_path, count=4) == []


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        ([(ONE, ONE)] * 4 + [(ONE, NONE)], True),  # exactly 80 %
        ([(ONE, ONE)] * 3 + [(ONE, NONE)] * 2, False),
        ([(BOTH, ONE)] * 3 + [(BOTH, TWO)] * 3, False),  # always on the object, never on one part
        ([(ONE, ONE)] * 5 + [(TWO, NONE)] * 5, True),  # only pictures that show the part count
        ([(ONE, TWO)] * 5, False),
        ([(ONE, ONE)] * (FEWEST - 1), None),
        ([], None),
    ],
)
def test_one_part_in_four_of_five_pictures_that_show_it(
    pictures: list[tuple[frozenset[int], frozenset[int]]], expected: bool | None
) -> None:
    assert keeps_to_a_part(pictures) is expected

"""The purity of prototypes, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.audit.masks import Masks
from protoserve.audit.purity import PATCHES, Nearest, purity, share_of_one_part
from protoserve.audit.subject import Subject
from protoserve.bundle.truth_card import PartPurity
from tests.protoserve.audit.toys import CELL, ToyEngine, local_maps, sample, square_of, subject

PICTURES = 24


def found_in(folder: Path, toy: Subject) -> PartPurity:
    """The square is part 1 in the pictures of Red and part 2 in those of Green."""
    pictures = sample(PICTURES)
    for image, name in enumerate(pictures.names):
        row, column = divmod(square_of(image), 4)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 1 + image % 2
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    nearest = Nearest(4)
    for start in (0, 16):
        images = range(PICTURES)[start : start + 16]
        outputs = toy.run(pictures.arrays[start : start + 16])
        nearest.add(outputs.similarity, outputs.cell, list(images))
    done: list[int] = []
    geometries = dict(enumerate(pictures.geometries))
    (found,) = purity(toy, Masks(folder, {}), pictures.names, geometries, nearest, "train", done.append)
    assert sum(done) == PICTURES and found.prototypes == 4 and found.split == "train"
    return found


def test_the_nearest_pictures_are_the_most_similar_of_all_batches() -> None:
    generator = np.random.default_rng(0)
    similarity = generator.permutation(60 * 2).reshape(60, 2).astype(np.float32)
    cell = generator.integers(0, 16, (60, 2))
    nearest = Nearest(2)
    for start in range(0, 60, 7):
        rows = slice(start, start + 7)
        nearest.add(similarity[rows], cell[rows], list(range(60)[rows]))
    expected = np.argsort(-similarity, axis=0)[:PATCHES]
    assert (nearest.image == expected).all()
    assert (nearest.cell == np.take_along_axis(cell, expected, axis=0)).all()


def test_prototypes_that_follow_the_square_are_pure(tmp_path: Path) -> None:
    """Prototypes 0 and 2 find the squares of their colour: 10 of 10 patches hold part 1, or part 2. The others are the
    same everywhere, so their ten pictures are the first ones, and their cell is always 0, where the square of none of
    these is but picture 3's."""
    found = found_in(tmp_path, subject())
    assert square_of(3) == 0
    assert found.pure == pytest.approx((1 + 0.1 + 1 + 0.1) / 4)
    assert found.shuffled < 0.5


def test_boxes_that_lie_two_cells_beside_are_not(tmp_path: Path) -> None:
    engine = ToyEngine(maps=lambda images: np.roll(local_maps(images), 2, axis=3))
    assert found_in(tmp_path, subject(engine)).pure < 0.2


def test_pictures_without_a_mask_do_not_count() -> None:
    assert purity(subject(), Masks(Path(), {}), [], {}, Nearest(4), "train") == []


def test_a_patch_may_hold_several_parts() -> None:
    assert share_of_one_part([frozenset({1, 2}), frozenset({2, 3}), frozenset({3}), frozenset({2})]) == 0.75
    assert share_of_one_part([frozenset(), frozenset()]) == 0

"""Parts around the evidence before and after noise, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protoserve.audit.masks import Masks
from protoserve.audit.stability import parts_within, stability
from protoserve.audit.subject import pieces_of
from protoserve.bundle.truth_card import Stability
from tests.protoserve.audit.toys import CELL, ToyEngine, local_maps, sample, square_of, subject


def found_in(folder: Path, engine: ToyEngine | None = None, part: int = 1) -> list[Stability]:
    """The square is `part`; a region of 32 % of 32 pixels, 10 pixels, around its cell's centre also touches the
    neighbours' margins."""
    toy = subject(engine)
    pictures = sample(4)  # squares at cells 1, 6, 11 and 0
    for image, name in enumerate(pictures.names):
        row, column = divmod(square_of(image), 4)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = part
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    outputs = toy.run(pictures.arrays)
    return stability(toy, pictures, Masks(folder, {}), outputs, pieces_of(outputs), seed=0)


def test_the_region_is_a_third_of_the_picture_around_the_box() -> None:
    mask = np.zeros((100, 50), dtype=np.uint8)
    mask[10, 10], mask[25, 32], mask[60, 20] = 1, 2, 3
    # Around (25, 26): columns 17 to 33, rows 10 to 42.
    assert parts_within(mask, (20, 21, 30, 31)) == {2}
    assert parts_within(mask, (0, 0, 20, 20)) == {1}
    assert parts_within(mask, (40, 90, 50, 100)) == frozenset()


def test_strong_evidence_is_stable_and_chance_is_the_share_of_cells(tmp_path: Path) -> None:
    (found,) = found_in(tmp_path)
    assert found.same_parts.measured.mean == 1.0 and found.same_parts.measured.images == 4
    # The square's cell and its neighbours show it: in squares of 3 × 3 cells around cells 1 (6), 6 (9), 11 (6), 0 (4).
    assert found.same_parts.baseline.mean == (6 + 9 + 6 + 4) / 4 / 16


def test_evidence_that_follows_the_noise_is_found(tmp_path: Path) -> None:
    def following_noise(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        # Any noise moves the peak two rows down.
        maps = local_maps(images)
        noisy = (images.reshape(len(images), -1) % 5 > 0).sum(axis=1) > 0
        return np.where(noisy[:, None, None, None], np.roll(maps, 2, axis=2), maps)

    (found,) = found_in(tmp_path, ToyEngine(maps=following_noise))
    assert found.same_parts.measured.mean == 0.0


def test_evidence_on_the_background_is_left_out(tmp_path: Path) -> None:
    assert found_in(tmp_path, part=0) == []

"""Views of pictures, and pictures decoded ahead: in order, none lost, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.images.geometry import InputRule
from training.data.pictures import Views, batches, loaded

VIEWS = Views(InputRule(height=30, width=40, resize="stretch"), seed=3)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    generator = np.random.default_rng(0)
    for leaf in ("a", "b"):
        (tmp_path / "train" / leaf).mkdir(parents=True)
        for number in range(4):
            noise = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "train" / leaf / f"{number}.png")
    return read_split(tmp_path, "train", read_taxonomy(tmp_path))


def test_a_view_is_a_function_of_seed_image_and_view(dataset: Dataset) -> None:
    plain, mirrored = VIEWS.of(dataset, 1, 0), VIEWS.of(dataset, 1, 1)
    np.testing.assert_array_equal(plain, np.asarray(Image.open(dataset.file(1))))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    np.testing.assert_array_equal(VIEWS.of(dataset, 1, 5), VIEWS.of(dataset, 1, 5))
    assert (VIEWS.of(dataset, 1, 5) != VIEWS.of(dataset, 1, 6)).any()
    assert (VIEWS.of(dataset, 1, 5) != replace(VIEWS, seed=4).of(dataset, 1, 5)).any()


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_batches_keep_the_order_and_lose_nothing(dataset: Dataset, size: int) -> None:
    order = [5, 1, 7, 0, 3, 2, 6, 4]
    found = list(batches(lambda number: VIEWS.of(dataset, number, 0), order, size))
    assert [number for numbers, _ in found for number in numbers] == order
    assert all(len(numbers) == len(pictures) <= size for numbers, pictures in found)
    np.testing.assert_array_equal(found[0][1][0], VIEWS.of(dataset, 5, 0))


def picture(number: int) -> NDArray[np.uint8]:
    # The first pictures are the slowest, so later ones are ready before them.
    time.sleep(0.002 * (number < 3))
    return np.full((2, 2, 3), number, dtype=np.uint8)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "parts", [[], [[5]], [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9]], [[number] for number in range(30)]]
)
def test_parts_come_in_order_with_their_pictures(parts: list[Sequence[int]], workers: int) -> None:
    found = list(loaded(picture, parts, workers))
    assert [numbers for numbers, _ in found] == parts
    for numbers, pictures in found:
        assert pictures.dtype.is_floating_point is False
        assert pictures[:, 0, 0, 0].tolist() == numbers
        assert pictures.shape == (len(numbers), 2, 2, 3)


def test_it_decodes_ahead_within_a_bound() -> None:
    asked: list[int] = []

    def load(number: int) -> NDArray[np.uint8]:
        asked.append(number)
        return picture(number)

    stream = loaded(load, [[number, number + 1] for number in range(0, 200, 2)], workers=2)
    next(stream)
    deadline = time.monotonic() + 10
    while len(asked) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert 6 <= len(asked) <= 10
    stream.close()


def test_a_picture_that_can_not_be_read_is_an_error_where_its_part_is_due() -> None:
    def load(number: int) -> NDArray[np.uint8]:
        if number == 3:
            raise ValueError("number 3 is torn")
        return picture(number)

    stream = loaded(load, [[0, 1], [2, 3], [4]], workers=2)
    assert next(stream)[0] == [0, 1]
    with pytest.raises(ValueError, match="number 3 is torn"):
        next(stream)


def test_stopping_early_leaves_no_thread() -> None:
    before = threading.active_count()
    stream = loaded(picture, [[number] for number in range(100)], workers=4)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_crops_zoom_within_their_range_and_mirror_only_where_asked(dataset: Dataset) -> None:
    still = replace(VIEWS, zoom=(1.0, 1.0), mirror=False)
    # Without a mirror, view 1 is a crop, too, and no view is a mirror image of another.
    assert not np.array_equal(still.of(dataset, 0, 1), VIEWS.of(dataset, 0, 1))
    # A gradient from left to right shows which side a crop comes from.
    ramp = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (30, 1, 3)))
    ramp.save(dataset.file(0))
    for view in range(1, 12):
        seen = still.of(dataset, 0, view)[:, :, 0].astype(int)
        assert (seen[:, -1] > seen[:, 0]).all()
    mirrored = [VIEWS.of(dataset, 0, view)[:, :, 0].astype(int) for view in range(2, 22)]
    assert {bool(seen[0, -1] > seen[0, 0]) for seen in mirrored} == {False, True}
    zoomed = replace(VIEWS, zoom=(0.5, 0.5), mirror=False)
    spans = [np.ptp(zoomed.of(dataset, 0, view)[:, :, 0].astype(int)) for view in range(2, 12)]
    # Half of the ramp, stretched by at most e^0.15.
    assert max(spans) <= 0.5 * np.exp(0.15) * 240 + 12

"""Pictures decoded ahead: in order, none lost, and no thread left behind."""

import threading
import time

import numpy as np
import pytest

from training.data.pictures import loaded


def picture(number):
    # The first pictures are the slowest, so later ones are ready before them.
    time.sleep(0.002 * (number < 3))
    return np.full((2, 2, 3), number, dtype=np.uint8)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    "parts", [[], [[5]], [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9]], [[number] for number in range(30)]]
)
def test_parts_come_in_order_with_their_pictures(parts, workers: int) -> None:
    found = list(loaded(picture, parts, workers))
    assert [numbers for numbers, _ in found] == parts
    for numbers, pictures in found:
        assert pictures.dtype.is_floating_point is False
        assert pictures[:, 0, 0, 0].tolist() == numbers
        assert pictures.shape == (len(numbers), 2, 2, 3)


def test_it_decodes_ahead_of_who_learns_but_not_without_bound() -> None:
    asked = []

    def load(number):
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
    def load(number):
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

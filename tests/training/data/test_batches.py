"""The order of an epoch, and its batches."""

from __future__ import annotations

import numpy as np

from training.data.batches import epoch_batches, epoch_order, slices


def test_an_epoch_holds_every_image_once_with_the_share_done() -> None:
    batches = list(epoch_batches(21, 8, (0, 5)))
    assert [len(numbers) for numbers, _ in batches] == [8, 8, 5]
    assert sorted(number for numbers, _ in batches for number in numbers.tolist()) == list(range(21))
    assert [done for _, done in batches] == [0.0, 8 / 21, 16 / 21]


def test_the_order_depends_on_the_seed_alone() -> None:
    assert np.array_equal(epoch_order(50, (3, 1)), epoch_order(50, (3, 1)))
    assert not np.array_equal(epoch_order(50, (3, 1)), epoch_order(50, (3, 2)))


def test_slices_are_consecutive_and_complete() -> None:
    assert [piece.tolist() for piece in slices(np.arange(5), 2)] == [[0, 1], [2, 3], [4]]

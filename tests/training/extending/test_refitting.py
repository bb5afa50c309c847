"""How much a class of few pictures counts in a refit."""

from __future__ import annotations

import numpy as np

from training.extending.refitting import image_weights, refit_settings


def test_only_new_leaves_with_few_images_weigh_more() -> None:
    leaves = np.array([0] * 10 + [1] * 2 + [2] * 6)
    weight = image_weights(leaves, np.array([False, True, True]), balance=1.0)
    assert weight.tolist() == [1.0] * 10 + [3.0] * 2 + [1.0] * 6
    assert image_weights(leaves, np.array([True, False, False]), balance=1.0).tolist() == [1.0] * 18
    # Leaves without images do not count.
    assert (image_weights(leaves, np.array([False, True, True, True]), balance=1.0) == weight).all()


def test_settings_that_favour_new_classes_come_first() -> None:
    balances = [setting.balance for settings in refit_settings() for setting in settings]
    assert balances == sorted(balances, reverse=True) and balances[-1] == 0

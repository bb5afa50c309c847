"""How much a class of few pictures counts in a refit."""

from __future__ import annotations

import numpy as np

from training.extending.refitting import image_weights


def test_only_balanced_members_with_few_images_weigh_more() -> None:
    target = np.array([0] * 10 + [1] * 2 + [2] * 6)
    weight = image_weights(target, np.array([False, True, True]), balance=1.0)
    assert weight.tolist() == [1.0] * 10 + [3.0] * 2 + [1.0] * 6
    assert image_weights(target, np.array([True, False, False]), balance=1.0).tolist() == [1.0] * 18

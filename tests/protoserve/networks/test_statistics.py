"""The colours that a backbone expects."""

from __future__ import annotations

import torch

from protoserve.networks.network import Normalise
from protoserve.networks.statistics import IMAGENET, Statistics


def test_pictures_are_normalised_with_the_statistics_of_the_weights() -> None:
    grey = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    half = Normalise(Statistics((0.5, 0.5, 0.5), (0.25, 0.5, 1.0)))(grey)
    torch.testing.assert_close(half.flatten(), torch.tensor([2.0, 1.0, 0.5]))
    assert Normalise()(grey).flatten()[0] == (1 - IMAGENET.mean[0]) / IMAGENET.deviation[0]

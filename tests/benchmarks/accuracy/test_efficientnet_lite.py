"""Weights of another implementation under timm's names."""

from __future__ import annotations

import pytest
import torch

from benchmarks.accuracy.efficientnet_lite import renamed
from protoserve.errors import InputError

EXPECTED = {"conv_stem.weight": torch.zeros(2, 3), "bn1.running_mean": torch.zeros(2)}


def test_tensors_are_renamed_in_order_if_each_has_its_shape_and_role() -> None:
    given = {"_conv_stem.weight": torch.ones(2, 3), "_bn0.running_mean": torch.ones(2)}
    assert list(renamed(given, EXPECTED)) == list(EXPECTED)
    for wrong in (
        {"_conv_stem.weight": torch.ones(2, 3)},
        {"_conv_stem.weight": torch.ones(3, 2), "_bn0.running_mean": torch.ones(2)},
        {"_conv_stem.weight": torch.ones(2, 3), "_bn0.running_var": torch.ones(2)},
    ):
        with pytest.raises(InputError, match="give the"):
            renamed(wrong, EXPECTED)

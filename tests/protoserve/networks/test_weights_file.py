"""Weights as people have them: wrapped, prefixed, without a head or with another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protoserve.errors import InputError
from protoserve.networks.weights_file import note, read_weights

EXPECTED = {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2), "fc.weight": torch.zeros(10, 2)}
OWN: dict[str, Tensor] = {
    "conv.weight": torch.ones(2, 3),
    "conv.bias": torch.full((2,), 2.0),
    "fc.weight": torch.full((10, 2), 3.0),
}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in OWN.items()}


@pytest.mark.parametrize(
    ("wrapped", "found"),
    [
        (lambda: OWN, ""),
        (lambda: {"state_dict": OWN, "epoch": 3}, "under 'state_dict'"),
        (lambda: {"model": OWN}, "under 'model'"),
        (lambda: prefixed("module."), "after 'module.'"),
        (
            lambda: {"state_dict": prefixed("module.model."), "optimizer": {}},
            "under 'state_dict' after 'module.model.'",
        ),
        (lambda: {"model_ema": {"module": prefixed("_orig_mod.")}}, "under 'model_ema.module' after '_orig_mod.'"),
        (lambda: {**prefixed("backbone."), "head.weight": torch.zeros(1)}, "after 'backbone.'"),
    ],
)
def test_tensors_are_found_wherever_they_are(wrapped: Callable[[], dict[str, Any]], found: str, tmp_path: Path) -> None:
    torch.save(wrapped(), tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth", EXPECTED)
    assert set(weights.fitting) == set(EXPECTED) and weights.found == found
    assert all(torch.equal(weights.fitting[name], OWN[name]) for name in EXPECTED)
    told = note(tmp_path / "w.pth", "tiny", weights)
    assert told == "" if not found else found in told


def test_another_number_of_classes_and_a_missing_head_leave_the_rest(tmp_path: Path) -> None:
    torch.save({**OWN, "fc.weight": torch.zeros(7, 2)}, tmp_path / "seven.pth")
    seven = read_weights(tmp_path / "seven.pth", EXPECTED)
    assert set(seven.fitting) == {"conv.weight", "conv.bias"} and seven.others == ("fc.weight",)
    assert note(tmp_path / "seven.pth", "tiny", seven).endswith("took the backbone of tiny; left out fc.weight")
    torch.save({name: OWN[name] for name in ("conv.weight", "conv.bias")}, tmp_path / "bare.pth")
    bare = read_weights(tmp_path / "bare.pth", EXPECTED)
    assert set(bare.fitting) == {"conv.weight", "conv.bias"} and bare.others == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}}, "holds no tensors"),
        ([1, 2], "holds no tensors"),
        ({"format": 1, "description": "{}", "state": OWN}, "a run's whole network; give the run's folder"),
    ],
)
def test_a_file_without_weights_is_refused(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=said):
        read_weights(tmp_path / "w.pth", EXPECTED)

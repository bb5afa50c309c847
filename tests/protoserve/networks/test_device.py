"""The device that a command asks for, where torch sees no GPU."""

from __future__ import annotations

import pytest
import torch

from protoserve.errors import DeviceError
from protoserve.networks.device import torch_device


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_the_cpu_computes() -> None:
    assert torch_device("auto") == torch_device("cpu") == torch.device("cpu")


def test_requesting_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(DeviceError, match="--device cuda: torch sees no CUDA device; use --device cpu"):
        torch_device("cuda")

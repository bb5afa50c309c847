"""The device that a command asks for."""

from __future__ import annotations

import torch

from protoserve.device import Device
from protoserve.errors import DeviceError


def torch_device(device: Device) -> torch.device:
    """`auto` is a GPU where torch sees one; asked for `cuda` and none there is an error. A GPU is told to compute
    float32 in full: by default torch lets convolutions round to 10 bits there, and prototypes would not be the cells
    that the exported graph finds."""
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device; use --device cpu or install a driver")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")

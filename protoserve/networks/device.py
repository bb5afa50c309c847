"""The device that a command asks for."""

from __future__ import annotations

import torch

from protoserve.device import Device
from protoserve.errors import DeviceError


def torch_device(device: Device) -> torch.device:
    """The torch device of a `--device` option; `auto` is the GPU if torch sees one, else the CPU.

    Turns off TF32 on a GPU. By default torch rounds the inputs of convolutions there to 10 bits, and prototypes would
    then differ from the cells that the exported graph computes. Raises DeviceError for `cuda` without a GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: torch sees no CUDA device; use --device cpu or install a driver")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")

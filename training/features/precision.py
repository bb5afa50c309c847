"""Half precision and compilation of a backbone while it learns.

Everything else is float32: cached features, projection, evaluation, add-on layers, distances and losses. They depend on
small differences that half precision would lose.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from protoserve.errors import DeviceError
from training.sections.network import Engine, Precision

# Compiling takes about a minute. `auto` compiles for training on at least this many pictures, over all epochs.
WORTH_COMPILING = 100_000


@dataclass(frozen=True)
class Learning:
    """How a backbone learns.

    It learns from the part `train_from` on (None: all of it). The output of earlier parts is cached unless `fresh`
    holds. `pictures` counts the training pictures over all epochs, for `compile: auto`. `features` names what computes
    the features of the parts that are frozen.
    """

    train_from: str | None = None
    fresh: bool = False
    precision: Precision = "auto"
    compile: Literal["auto"] | bool = "auto"
    pictures: int = 0
    features: Engine = "auto"


def half_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The data type in which a backbone learns, or None for float32. `auto` is bfloat16 on a GPU that supports it.

    Raises DeviceError if the GPU does not support the type.
    """
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not has_bfloat16:
        name = torch.cuda.get_device_name(device)
        raise DeviceError(f"precision: bfloat16: {name} does not support it; set precision to float16 or auto")
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and has_bfloat16 else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def compiles(wanted: Literal["auto"] | bool, pictures: int, device: torch.device) -> bool:
    """Whether to compile a backbone for training on `pictures` pictures over all epochs. `auto` compiles on a GPU if
    there are enough pictures and the machine has what compiling needs.

    Raises DeviceError for `compile: true` on a machine that lacks it, with the name of what is missing.
    """
    if wanted is False:
        return False
    missing = _missing_to_compile(device)
    if wanted is True:
        if missing:
            raise DeviceError(f"compile: true: {missing}; install it, or set compile to false or auto")
        return True
    return device.type == "cuda" and not missing and pictures >= WORTH_COMPILING


def _missing_to_compile(device: torch.device) -> str | None:
    """What torch.compile needs and this machine lacks, or None."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl") if name):
        return "there is no C++ compiler (g++ or clang++)"
    if sys.platform == "linux" and not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "there are no headers of Python (on Debian and Ubuntu: python3-dev)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "there is no triton"
    return None


def learning_forward(module: nn.Module, learning: Learning, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The forward pass of a backbone, or of its top, while it learns. Input and output are float32; in between it
    computes in the precision of `learning`, with channels last in memory, and compiled if that asks for it. Raises
    DeviceError if the device can't.
    """
    half = half_precision(learning.precision, device)
    compiled = compiles(learning.compile, learning.pictures, device)
    forward: Callable[[Tensor], Tensor] = torch.compile(module) if compiled else module

    def channels_last(pictures: Tensor) -> Tensor:
        # A step of MobileNetV2 or of the demo's ResNet takes two thirds to three quarters of the time so, on a CPU.
        # Tiles that a trunk has computed have a dimension more.
        if pictures.dim() == 4:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        return forward(pictures).contiguous()

    if half is None:
        return channels_last

    def in_half_precision(pictures: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=half):
            maps = channels_last(pictures)
        return maps.float()

    return in_half_precision

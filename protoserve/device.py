"""The devices and graphs that a caller can request, and the check for an NVIDIA driver."""

from __future__ import annotations

import ctypes
import sys
from typing import Final, Literal, TypeAlias, get_args

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
DEVICES: Final[tuple[Device, ...]] = get_args(Device)
# `auto`: the routed graph answers where the bundle has one and its certificate holds; `off`: the full graph alone.
Routed: TypeAlias = Literal["auto", "off"]
ROUTED: Final[tuple[Routed, ...]] = get_args(Routed)


def has_nvidia_driver() -> bool:
    """Return whether this machine has an NVIDIA driver (libcuda); without one, trying CUDA only prints errors."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True

"""The devices that can be asked for, and the NVIDIA driver."""

import ctypes.util
import sys

import pytest

from protoserve.device import DEVICES, has_nvidia_driver


def test_the_first_device_is_the_default_of_commands() -> None:
    assert DEVICES == ("auto", "cpu", "cuda")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's loader")
def test_the_driver_is_there_where_the_loader_knows_it() -> None:
    if ctypes.util.find_library("cuda"):
        assert has_nvidia_driver()
    if has_nvidia_driver():
        ctypes.CDLL("libcuda.so.1")

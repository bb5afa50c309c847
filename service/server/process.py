"""Ends a worker process together with its supervisor."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1


def end_with_parent() -> None:
    """Ask the kernel to send this process SIGTERM when its parent ends, for whatever reason (Linux only).

    Without it, a killed supervisor leaves workers behind that hold the port.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        # The parent ended before the call took effect.
        os.kill(os.getpid(), signal.SIGTERM)

"""What a server's processes do for each other: a worker does not outlive its supervisor."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent is gone, however that ended (Linux only).

    Without it a supervisor that is killed leaves workers behind that hold the port.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        # It went before the kernel was told.
        os.kill(os.getpid(), signal.SIGTERM)

"""The processes of a server: how they start and end, and how many files they may open."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, Final

_SET_PARENT_DEATH_SIGNAL = 1
# Files of the model, libraries, metrics and threads, beside connections.
_OTHER_FILES: Final = 256
_NOTICE_SECONDS: Final = 0.5


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


def allow_connections(count: int) -> int:
    """Raise this process's limit of open files for `count` connections. Returns how many connections it allows."""
    if sys.platform == "win32":
        return count
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return count if soft == resource.RLIM_INFINITY else max(1, min(count, soft - _OTHER_FILES))


def stop_listening_before_workers_stop() -> None:
    """Make this process's supervisor (circus) refuse new connections once it stops, while workers finish their work.

    Workers share the listening socket. It would go on to take connections that no worker accepts any more, and their
    clients would wait until the last worker has ended.
    """
    # Where BentoML imports it from circus.
    from bentoml._internal.utils.circus import Arbiter

    stop = Arbiter.stop

    def stop_listening_first(arbiter: Any) -> Any:
        def refuse() -> None:
            for listener in arbiter.sockets.values():
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)

        # After the workers have noticed the signal; an event loop that still listens would report an error.
        arbiter.loop.call_later(_NOTICE_SECONDS, refuse)
        return stop(arbiter)

    Arbiter.stop = stop_listening_first

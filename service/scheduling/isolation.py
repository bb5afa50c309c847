"""What runs in a decoding process: one picture, within limits of memory and time.

Decoding can't be stopped in a thread. A process can be killed, and its memory returns to the system at once. Such a
process imports this module alone, so it must not import the web framework or the settings.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from protoserve.images.decoding import Limits, decode
from protoserve.images.fitting import FittedImage, fit
from protoserve.images.geometry import InputRule
from protoserve.images.signatures import format_of

# What a decoder may take beyond its estimate, in bytes of address space: buffers, stacks, fragments.
_SLACK: Final = 128_000_000
_SLACK_OF_THREADS: Final = 1_000_000_000
_WITH_THREADS: Final = ("AVIF", "HEIF")


def fit_within(
    data: bytes,
    rule: InputRule,
    limits: Limits,
    formats: tuple[str, ...],
    draft: bool,
    memory: int,
    seconds: float,
) -> FittedImage:
    """Decode a picture and resize it to model size, within `memory` bytes and `seconds` of CPU.

    Raises what `decode` raises, OutOfMemoryError among it. The process ends where the time is up.
    """
    _yield_to_others()
    _discard_messages()
    _limit(memory + (_SLACK_OF_THREADS if format_of(data) in _WITH_THREADS else _SLACK), seconds)
    return fit(decode(data, limits=limits, formats=formats, draft_for=rule if draft else None), rule)


def _yield_to_others() -> None:
    """Let small pictures, which the service decodes itself, go first; and if memory runs out, end first."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 10)
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _discard_messages() -> None:
    """Discard what libraries print. Nobody reads this process's standard error, so a full pipe would stop it."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _limit(memory: int, seconds: float) -> None:
    """Limit this process to so much more address space and CPU time than it has used by now."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    used = resource.getrusage(resource.RUSAGE_SELF)
    for kind, value in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory),
        (resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))

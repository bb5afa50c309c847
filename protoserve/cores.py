"""What a process may use of its machine: processor cores and memory, within its container's limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_OCCUPIED: Final = Path("/proc/self/statm")
# Version 1 states "no limit" as the largest multiple of a page.
_NO_LIMIT: Final = 1 << 60


def usable_cores() -> int:
    """Return the number of cores of this process's affinity (which follows a `cpuset`), limited by the CPU quotas of
    its control groups, version 1 or 2; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quotas = [quota for read in (_quota_of_version_2, _quota_of_version_1) for quota in _limits("cpu", read)]
    return max(1, min([cores, *(round(quota) for quota in quotas)]))


def usable_memory() -> int | None:
    """Return the smallest memory limit of this process's control groups, version 1 or 2, in bytes; None without one."""
    readers = (_number("memory.max"), _number("memory.limit_in_bytes"))
    limits = [int(limit) for read in readers for limit in _limits("memory", read) if limit < _NO_LIMIT]
    return min(limits, default=None)


def resident_memory() -> int:
    """Return the bytes of memory that this process occupies, 0 where the system does not tell."""
    try:
        pages = int(_OCCUPIED.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _limits(controller: str, read: Callable[[Path], float]) -> Iterator[float]:
    """Yield the limits that a process's control groups state: its own and all above it."""
    for group in _control_groups(controller):
        try:
            yield read(group)
        except (OSError, ValueError, ZeroDivisionError):
            # There is no such group or file, or no limit ("max").
            continue


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, from the innermost up, for versions 2 and 1."""
    try:
        lines = [line.split(":", 2) for line in _MEMBERSHIP.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        lines = []
    # A container may see only its own group, as the root, whatever path the line names.
    yield from (_GROUPS, _GROUPS / controller)
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        for root in (_GROUPS / controllers, _GROUPS / controller) if controllers else (_GROUPS, _GROUPS / "unified"):
            group = root / path.lstrip("/")
            while group != root and root in group.parents:
                yield group
                group = group.parent


def _quota_of_version_2(group: Path) -> float:
    quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    return int(quota) / int(period)


def _quota_of_version_1(group: Path) -> float:
    quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
    if quota <= 0:
        raise ValueError("no quota")
    return quota / int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))


def _number(file: str) -> Callable[[Path], float]:
    return lambda group: int((group / file).read_text(encoding="ascii"))

"""The cores and the memory that a process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from protoserve import cores

COUNT = "from protoserve.cores import usable_cores; print(usable_cores())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_is_bound_to_one_core_uses_one() -> None:
    core = min(os.sched_getaffinity(0))
    bound = f"import os; os.sched_setaffinity(0, {{{core}}}); {COUNT}"
    assert subprocess.check_output([sys.executable, "-c", bound], text=True) == "1\n"


def test_no_more_are_used_than_there_are() -> None:
    assert 1 <= int(subprocess.check_output([sys.executable, "-c", COUNT])) <= (os.cpu_count() or 1)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /sys/fs/cgroup, for a process with eight cores in no group."""
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("250000 100000\n", 2),  # two and a half cores
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),  # more than the process is bound to
        ("max 100000\n", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_a_containers_quota_bounds_the_cores(quota: str | None, expected: int, groups: Path) -> None:
    if quota is not None:
        write(groups / "cpu.max", quota)
    assert cores.usable_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("250000\n", 2), ("-1\n", 8), ("0\n", 8), ("50000\n", 1)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("inside", ["", "docker/abc"])
def test_a_quota_of_version_1_bounds_the_cores(
    inside: str, controllers: str, quota: str, expected: int, groups: Path
) -> None:
    write(groups / "membership", f"5:memory:/other\n4:{controllers}:/{inside}\n")
    folder = groups / (controllers if inside else "cpu") / inside
    write(folder / "cpu.cfs_quota_us", quota)
    write(folder / "cpu.cfs_period_us", "100000\n")
    assert cores.usable_cores() == expected


def test_the_groups_above_bound_a_process_too(groups: Path) -> None:
    write(groups / "membership", "0::/slice/service/worker\n")
    write(groups / "slice/cpu.max", "300000 100000\n")
    write(groups / "slice/memory.max", "2000000000\n")
    write(groups / "slice/service/cpu.max", "max 100000\n")
    write(groups / "slice/service/memory.max", "1073741824\n")
    write(groups / "slice/service/worker/memory.max", "max\n")
    assert (cores.usable_cores(), cores.usable_memory()) == (3, 1_073_741_824)


def test_the_memory_that_a_process_occupies_grows_with_what_it_holds() -> None:
    # A process that has freed memory may hold 50 MB without asking for more, so a new one counts.
    code = (
        "from protoserve import cores; before = cores.resident_memory(); held = bytes([1]) * 50_000_000; "
        "print(before, cores.resident_memory() - before)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    before, grown = map(int, printed.stdout.split())
    assert 40_000_000 < grown < 100_000_000 or not before


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "1073741824\n", 1_073_741_824),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "1073741824\n", 1_073_741_824),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("memory/docker/abc/memory.limit_in_bytes", "536870912\n", 536_870_912),
        ("other", "1\n", None),
    ],
)
def test_the_memory_limit_is_read_in_both_versions(file: str, text: str, expected: int | None, groups: Path) -> None:
    write(groups / "membership", "9:name=systemd:/\n4:memory:/docker/abc\n0::/\n")
    write(groups / file, text)
    assert cores.usable_memory() == expected

"""The cores that a process may use."""

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
def test_a_containers_quota_bounds_them(
    quota: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(cores, "Path", lambda _: tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.usable_cores() == expected

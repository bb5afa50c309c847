"""A worker ends with its supervisor, and may open enough files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]
CHILD = "from service.server.process import end_with_parent; end_with_parent(); print('set', flush=True); input()"
# Starts the child on a pipe that stays open, and passes on its process id.
PARENT = f"""
import os, subprocess, sys
reading, writing = os.pipe()
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=reading, stdout=subprocess.PIPE, pass_fds=(writing,))
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses a call of the Linux kernel")
def test_a_process_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("soft", "hard", "allowed"), [(300, 4096, 1000), (300, 500, 244), (2000, 4096, 1000)])
def test_the_limit_of_open_files_is_raised_as_far_as_allowed(soft: int, hard: int, allowed: int) -> None:
    code = (
        "import resource as r; from service.server.process import allow_connections; "
        f"r.setrlimit(r.RLIMIT_NOFILE, ({soft}, {hard})); "
        "print(allow_connections(1000), r.getrlimit(r.RLIMIT_NOFILE)[0])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(allowed), str(max(soft, min(1256, hard)))]

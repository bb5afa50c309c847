"""The services of the batching benchmark explain how to start them."""

from __future__ import annotations

import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.service.batching_sides", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_the_variables_that_it_reads() -> None:
    ended = run("--help")
    assert ended.returncode == 0, ended.stderr
    for variable in ("BATCHING_SIDE", "BATCHING_BUNDLE", "BATCHING_MOST", "BATCHING_LANES"):
        assert variable in ended.stdout


def test_started_as_a_command_it_names_the_one_to_use() -> None:
    ended = run()
    assert ended.returncode == 2
    assert "python -m benchmarks.service.batching BUNDLE" in ended.stderr

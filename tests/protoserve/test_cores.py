"""The cores that a process may use."""

import os
import subprocess
import sys

import pytest

COUNT = "from protoserve.cores import usable_cores; print(usable_cores())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_is_bound_to_one_core_uses_one() -> None:
    core = min(os.sched_getaffinity(0))
    bound = f"import os; os.sched_setaffinity(0, {{{core}}}); {COUNT}"
    assert subprocess.check_output([sys.executable, "-c", bound], text=True) == "1\n"


def test_no_more_are_used_than_there_are() -> None:
    assert 1 <= int(subprocess.check_output([sys.executable, "-c", COUNT])) <= (os.cpu_count() or 1)

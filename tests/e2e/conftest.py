"""Processes for tests that kill them or have them talk to each other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="session")
def forkserver() -> Iterator[ForkServerContext]:
    """Starts processes from one that has imported all of training, which is most of what a small run would do."""
    with pytest.MonkeyPatch.context() as patch:
        # For so small a network threads are a burden, above all beside other work on the machine.
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["training.running", "training.commands", "sklearn.cluster", "matplotlib.figure"]
        )
        yield context

"""Processes for tests that kill them or let them communicate."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="session")
def forkserver() -> Iterator[ForkServerContext]:
    """Fork processes from one that has imported all of training: imports take most of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        # A network this small is slower with threads, above all on a busy machine.
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["training.running", "training.commands", "sklearn.cluster", "matplotlib.figure"]
        )
        yield context

"""Small valid inputs of every command, and processes for tests that kill them or let them communicate."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.e2e.bench import Bench, make_bench


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


@pytest.fixture
def bench(tmp_path: Path, tiny_run: Path, tiny_bundle: Path) -> Bench:
    """Small inputs; run and bundle share the data set's taxonomy."""
    return make_bench(tmp_path, tiny_run, tiny_bundle)

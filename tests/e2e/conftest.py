"""Small valid inputs of every command, and processes for tests that kill them or let them communicate."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bench import Bench, make_bench
from tests.e2e.page_browser import CHROMIUM, asked, open_page, opened_browser, wait_for_answer
from tests.e2e.serving import Server, serving


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


@pytest.fixture(scope="session")
def page_server(calibrated_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service over a bundle with novelty thresholds, for the tests of its page."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with serving(calibrated_bundle, tmp_path_factory.mktemp("page")) as found:
        yield found


# Not for the session: Playwright keeps an event loop running, beside which later tests could run none of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser: Any, page_server: Server, photograph: Path) -> Any:
    """The page after it was given the photograph."""
    opened = open_page(browser, page_server.address, viewport={"width": 1440, "height": 1000})
    opened.set_input_files("#file", str(photograph))
    opened.wait_for_selector(".piece")
    return opened


@pytest.fixture
def fresh(page: Any, photograph: Path, tmp_path: Path) -> Any:
    """The same page with the photograph as a new picture: nothing is chosen. Its file is `given`."""
    page.given = Path(shutil.copy(photograph, tmp_path / f"{tmp_path.name}.jpg"))
    page.set_input_files("#file", str(page.given))
    wait_for_answer(page, page.given.name)
    page.mouse.move(0, 0)
    return page


@pytest.fixture(scope="module")
def answer(page_server: Server, photograph: Path) -> Any:
    """What the service says about the photograph."""
    return asked(page_server, photograph.read_bytes())

"""A running application for tests: the routes over a real model, behind Starlette's test client."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from service.app import create_app
from service.model.holder import LoadedModel
from service.settings import Settings

with warnings.catch_warnings():
    # Starlette recommends httpx2, which it does not require; httpx does all that is needed here.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient as TestClient


class RunApp(Protocol):
    """Starts an application with some settings, by default over the tiny bundle, and returns a client of it."""

    def __call__(self, current_model: Callable[[], LoadedModel] | None = None, **settings: Any) -> TestClient: ...


@contextmanager
def running_app(current_model: Callable[[], LoadedModel], **settings: Any) -> Iterator[TestClient]:
    """Run an application. Its failures become responses of status 500, as a client sees them."""
    app = create_app(Settings(**settings), current_model)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client

"""The service's routes over a real bundle, without BentoML."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from protoserve.inference.classifier import Classifier
from service.app import create_app
from service.current import CurrentModel
from service.settings import Settings

# BentoML makes its folders when it is imported; not in the home of whoever runs the tests.
os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="protoserve-bentoml-"))
with warnings.catch_warnings():
    # BentoML's own deprecations, which come while it is imported.
    warnings.simplefilter("ignore")
    import bentoml.models  # noqa: F401

with warnings.catch_warnings():
    # Starlette would rather have httpx2, which it does not require; httpx does what is needed here.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

LIMIT = 200_000


@pytest.fixture(scope="session")
def current(tiny_bundle: Path) -> CurrentModel:
    """The model behind the routes."""
    return CurrentModel(lambda: tiny_bundle, device="cpu", threads=1)


@pytest.fixture(scope="session")
def classifier(current: CurrentModel) -> Classifier:
    """The same, as the Python interface has it."""
    return current().classifier


@pytest.fixture(scope="session")
def client(current: CurrentModel) -> Iterator[TestClient]:
    """A client of the routes with small limits; a failure of the service is an answer, not an exception."""
    settings = Settings(max_bytes=LIMIT, max_pixels=1_000_000, max_images=3)
    app = create_app(settings, current)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client

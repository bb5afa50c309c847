"""The service's routes over a real bundle, without BentoML."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from protoserve.bundle.ensemble import write_ensemble
from protoserve.bundle.folder import read_bundle
from protoserve.inference.classifier import Classifier
from service.model.holder import LoadedModel, ModelHolder
from service.settings import Settings
from tests.service.running import RunApp, TestClient, running_app

# BentoML creates its folders at import; keep them out of the home directory.
os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="protoserve-bentoml-"))
with warnings.catch_warnings():
    # BentoML's own deprecation warnings, at import.
    warnings.simplefilter("ignore")
    import bentoml.models  # noqa: F401

MAX_BYTES = 200_000


@pytest.fixture(scope="session")
def holder(tiny_bundle: Path) -> ModelHolder:
    """The model behind the routes."""
    return ModelHolder(lambda: tiny_bundle, Settings(device="cpu", threads=1))


@pytest.fixture(scope="session")
def classifier(holder: ModelHolder) -> Classifier:
    """The same model behind the Python interface."""
    return holder.current().classifier


@pytest.fixture(scope="session")
def client(holder: ModelHolder) -> Iterator[TestClient]:
    """A client of one application with small limits, which all tests share."""
    with running_app(holder.current, max_bytes=MAX_BYTES, max_pixels=1_000_000, max_images=3) as client:
        yield client


@pytest.fixture(scope="session")
def ensemble_folder(tiny_bundle: Path, twin_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of two bundles, `tiny` and `twin`."""
    directory = tmp_path_factory.mktemp("ensembles") / "both"
    write_ensemble([read_bundle(tiny_bundle), read_bundle(twin_bundle)], directory, name="Both of them")
    return directory


@pytest.fixture(scope="session")
def ensemble_holder(ensemble_folder: Path) -> ModelHolder:
    """The ensemble behind the routes."""
    return ModelHolder(lambda: ensemble_folder, Settings(device="cpu", threads=1))


@pytest.fixture(scope="session")
def ensemble(ensemble_holder: ModelHolder) -> Classifier:
    """The same ensemble behind the Python interface."""
    return ensemble_holder.current().classifier


@pytest.fixture(scope="session")
def ensemble_client(ensemble_holder: ModelHolder) -> Iterator[TestClient]:
    """A client of an application over the ensemble, which all tests share."""
    with running_app(ensemble_holder.current) as client:
        yield client


@pytest.fixture
def run_app(holder: ModelHolder) -> Iterator[RunApp]:
    """Starts further applications with other settings or another model; they stop at the end of the test."""
    with ExitStack() as stack:

        def run(current_model: Callable[[], LoadedModel] | None = None, **settings: Any) -> TestClient:
            return stack.enter_context(running_app(current_model or holder.current, **settings))

        yield run

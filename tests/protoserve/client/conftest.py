"""The routes of a small model, for the clients."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.types import ASGIApp

from protoserve.inference.classifier import Classifier
from service.api_keys import create_key
from service.app import create_app
from service.model.holder import ModelHolder
from service.settings import Settings

SECRET, KEY = create_key("test")


@pytest.fixture(scope="package")
def holder(tiny_bundle: Path) -> ModelHolder:
    return ModelHolder(lambda: tiny_bundle, Settings(device="cpu", threads=1))


@pytest.fixture(scope="package")
def classifier(holder: ModelHolder) -> Classifier:
    return holder.current().classifier


@pytest.fixture
def app(holder: ModelHolder) -> ASGIApp:
    return create_app(Settings(max_bytes=200_000, max_images=3), holder.current)


@pytest.fixture
def listening(holder: ModelHolder, tmp_path: Path) -> ASGIApp:
    """Routes that take feedback, with pictures."""
    settings = Settings(
        feedback=str(tmp_path / "feedback.jsonl"), feedback_pictures=tmp_path / "pictures", api_keys=(KEY,)
    )
    return create_app(settings, holder.current)

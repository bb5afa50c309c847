"""`Client` against the real routes: answers, refusals, feedback."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image
from starlette.types import ASGIApp

from protoserve.client import Client
from protoserve.client.calls import Asked
from protoserve.errors import InputError, ServiceError
from protoserve.inference.classifier import Classifier
from service.app import create_app
from service.model.holder import ModelHolder
from service.settings import Settings
from tests.protoserve.client.bridge import ADDRESS, Bridge
from tests.protoserve.client.conftest import KEY, SECRET
from tests.service.predictions import as_served


def test_a_prediction_equals_that_of_the_python_interface(
    app: ASGIApp, classifier: Classifier, photograph: Path
) -> None:
    with Client(ADDRESS, transport=Bridge(app)) as client:
        assert client.is_ready()
        assert client.model()["version"] == classifier.bundle.version
        expected = as_served(classifier.predict(photograph, top_k=2, alternatives=1, maps=True))
        assert client.predict(photograph, top_k=2, alternatives=1, maps="heat") == expected
        assert client.predict(photograph.read_bytes()) == as_served(classifier.predict(photograph))


def test_a_batch_returns_errors_in_their_positions(app: ASGIApp, classifier: Classifier, photograph: Path) -> None:
    with Client(ADDRESS, transport=Bridge(app)) as client:
        first, second = client.predict_batch([photograph, b"no picture"], maps="none")
    assert first == classifier.predict(photograph, top_k=0)
    assert isinstance(second, ServiceError)
    assert (second.code, second.status) == ("unsupported_image", 415)


def test_a_refusal_carries_the_problem_and_is_not_retried(app: ASGIApp, tmp_path: Path) -> None:
    tries: list[int] = []

    def count() -> None:
        tries.append(1)

    with Client(ADDRESS, transport=Bridge(app, count)) as client:
        with pytest.raises(ServiceError, match="more than the 200,000 bytes") as raised:
            client.predict(b"x" * 200_001)
        assert (raised.value.code, raised.value.status, len(tries)) == ("request_too_large", 413, 1)
        with pytest.raises(InputError, match="missing"):
            client.predict(tmp_path / "missing.jpg")


def test_the_key_is_sent(holder: ModelHolder, photograph: Path) -> None:
    app = create_app(Settings(api_keys=(KEY,)), holder.current)
    with Client(ADDRESS, key=SECRET, transport=Bridge(app)) as client:
        assert client.predict(photograph).path
    with Client(ADDRESS, transport=Bridge(app)) as client, pytest.raises(ServiceError) as raised:
        client.predict(photograph)
    assert (raised.value.code, raised.value.status) == ("invalid_key", 401)


def test_what_a_request_supposes_reaches_the_service(app: ASGIApp, classifier: Classifier, photograph: Path) -> None:
    asked: Asked = {"contrast": "Scuba", "without": (0, 3), "depth": {"": 2}}
    with Client(ADDRESS, transport=Bridge(app)) as client:
        assert client.predict(photograph, **asked) == as_served(classifier.predict(photograph, **asked))
        with pytest.raises(ServiceError, match="did you mean 'Scuba'"):
            client.predict(photograph, allow=["Scubo"])


def test_it_describes_the_model(app: ASGIApp, classifier: Classifier, photograph: Path) -> None:
    bundle = classifier.bundle
    with Client(ADDRESS, transport=Bridge(app)) as client:
        assert [node["node"] for node in client.taxonomy()["nodes"]] == list(bundle.taxonomy.names)
        assert [found["id"] for found in client.prototypes()] == [record.id for record in bundle.prototypes]
        assert {found["node"] for found in client.prototypes("Animal")} == {"Animal"}
        assert client.prototype(2) == client.prototypes()[2]
        assert client.prototype_image(2) == bundle.read_picture(2)
        assert client.prototype_image(2, view="patch") != client.prototype_image(2)
        fitted = Image.open(io.BytesIO(client.input(photograph)))
        assert fitted.size == (bundle.input.width, bundle.input.height)
        with pytest.raises(ServiceError) as raised:
            client.prototype(1000)
        assert raised.value.code == "unknown_prototype"
        with pytest.raises(ServiceError, match="the model has none"):
            client.sample(0)


def test_feedback_is_kept_with_its_picture(listening: ASGIApp, tmp_path: Path, photograph: Path) -> None:
    with Client(ADDRESS, key=SECRET, transport=Bridge(listening)) as client:
        prediction = client.predict(photograph)
        record = client.feedback(prediction, "wrong reason", prototypes=[3], comment="the shelf", by="Ada")
        assert (record.answer, record.prototypes, record.by, record.checked) == (prediction.id, [3], "Ada", True)
        with pytest.raises(ServiceError) as raised:
            client.feedback(prediction, "wrong", node="Animals")
        assert raised.value.code == "unknown_node"
        assert client.feedback_picture(photograph) == hashlib.sha256(photograph.read_bytes()).hexdigest()
    assert record.request in (tmp_path / "feedback.jsonl").read_text()


def test_a_service_that_takes_no_feedback_says_so(app: ASGIApp, photograph: Path) -> None:
    with Client(ADDRESS, transport=Bridge(app)) as client:
        prediction = client.predict(photograph)
        with pytest.raises(ServiceError) as raised:
            client.feedback(prediction, "right")
    assert raised.value.code == "not_found"

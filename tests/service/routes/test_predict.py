"""Routes that predict: answers, cancelled requests, back-pressure."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image

from protoserve.errors import OutOfMemoryError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.inference.classifier import Classifier
from protoserve.schema import Prediction
from service.app import create_app
from service.model.holder import ModelHolder
from service.settings import Settings
from tests import bombs
from tests.service.predictions import as_served
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/anything", "application/octet-stream", None])
def test_a_raw_body_gets_the_same_prediction_as_the_python_interface(
    client: TestClient, classifier: Classifier, photograph: Path, media_type: str | None
) -> None:
    headers = {"content-type": media_type} if media_type else {}
    response = client.post("/v1/predict", content=photograph.read_bytes(), headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.text == as_served(classifier.predict(photograph)).model_dump_json()


def test_a_form_gets_the_same_prediction_as_a_raw_body(client: TestClient, photograph: Path) -> None:
    raw = client.post("/v1/predict", content=photograph.read_bytes())
    form = client.post("/v1/predict", files={"image": ("a.jpg", photograph.read_bytes(), "image/jpeg")})
    assert form.status_code == 200
    assert form.content == raw.content


def test_the_query_selects_the_detail(client: TestClient, classifier: Classifier, photograph: Path) -> None:
    query = {"top_k": "2", "alternatives": "1", "maps": "heat"}
    response = client.post("/v1/predict", content=photograph.read_bytes(), params=query)
    expected = as_served(classifier.predict(photograph, top_k=2, alternatives=1, maps=True))
    assert response.text == expected.model_dump_json()
    assert any(level.evidence for level in expected.levels)
    assert all(item.map for level in expected.levels for item in level.evidence)


def test_maps_none_leaves_the_evidence_out(client: TestClient, photograph: Path) -> None:
    response = client.post("/v1/predict?maps=none", content=photograph.read_bytes())
    prediction = Prediction.model_validate_json(response.content)
    assert prediction.path
    assert [level.evidence for level in prediction.levels] == [[]] * len(prediction.levels)


def test_the_input_is_the_picture_at_model_size(client: TestClient, classifier: Classifier, photograph: Path) -> None:
    answer = client.post("/v1/input", content=photograph.read_bytes())
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert np.array_equal(np.asarray(picture), fit(decode(photograph), classifier.bundle.input).array)
    check_problem(client.post("/v1/input", content=b"no picture at all"), "unsupported_image")


def test_concurrent_requests_get_equal_answers(client: TestClient, photograph: Path) -> None:
    data = photograph.read_bytes()
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: client.post("/v1/predict", content=data), range(24)))
    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1


def test_a_batch_gets_a_prediction_or_a_problem_for_each_picture_in_order(
    client: TestClient, classifier: Classifier, photograph: Path
) -> None:
    good = photograph.read_bytes()
    files = [("image", ("1", good)), ("image", ("2", b"no picture")), ("image", ("3", good[:400]))]
    response = client.post("/v1/predict/batch?top_k=1", files=files)
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert first == {
        "prediction": json.loads(as_served(classifier.predict(photograph, top_k=1)).model_dump_json()),
        "problem": None,
    }
    assert (second["prediction"], second["problem"]["code"]) == (None, "unsupported_image")
    assert (third["prediction"], third["problem"]["code"]) == (None, "broken_image")


def test_a_prediction_of_an_ensemble_names_the_member_of_every_piece_of_evidence(
    ensemble_client: TestClient, ensemble: Classifier, photograph: Path
) -> None:
    query = {"top_k": str(ensemble.table.top_k), "maps": "heat"}
    response = ensemble_client.post("/v1/predict", content=photograph.read_bytes(), params=query)
    assert response.status_code == 200, response.text
    prediction = Prediction.model_validate_json(response.text)
    assert [member.name for member in prediction.model.members or []] == ["tiny", "twin"]
    for level in prediction.levels:
        assert level.known is None
        for evidence in level.evidence:
            assert evidence.source is not None and evidence.source.href is not None
            served = ensemble_client.get(evidence.source.href.removesuffix("/image")).json()
            assert (served["id"], served["member"]) == (evidence.prototype, evidence.member)
            assert served["source"]["image"] == evidence.source.image
            picture = ensemble_client.get(evidence.source.href)
            assert picture.content == ensemble.bundle.picture(evidence.prototype).read_bytes()


def test_the_evidence_of_a_single_bundle_names_no_member(client: TestClient, photograph: Path) -> None:
    document = client.post("/v1/predict", content=photograph.read_bytes()).json()
    assert document["model"]["members"] is None
    assert all(evidence["member"] is None for level in document["levels"] for evidence in level["evidence"])


def test_a_full_queue_and_full_memory_are_refused_at_once(run_app: RunApp, photograph: Path) -> None:
    client = run_app(max_queue=16, max_bytes=50_000, max_memory=50_000)
    data = photograph.read_bytes()
    assert len(data) < 50_000
    app: Any = client.app
    routes = next(route.endpoint.__self__ for route in app.routes if route.path == "/v1/predict")
    with routes.image_budget.reserve(16):
        response = client.post("/v1/predict", content=data)
        assert "limit of 16 images" in check_problem(response, "overloaded")["detail"]
        assert response.headers["retry-after"] == "1"
    with routes.body_budget.reserve(50_001 - len(data)):
        response = client.post("/v1/predict", content=data)
        assert "50,000" in check_problem(response, "overloaded")["detail"]
    assert client.post("/v1/predict", content=data).status_code == 200
    assert (routes.image_budget.used, routes.body_budget.used) == (0, 0)


# With one core, one thread runs all steps of an image; with many cores, each step has its own threads.
one_thread_and_several = pytest.mark.parametrize("cores", [1, 64])


@one_thread_and_several
def test_the_answer_does_not_depend_on_the_threads(
    cores: int,
    run_app: RunApp,
    classifier: Classifier,
    photograph: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.routes.predict.usable_cores", lambda: cores)
    data = photograph.read_bytes()
    with caplog.at_level(logging.INFO, "protoserve.access"):
        response = run_app().post("/v1/predict", content=data)
    assert response.json() == json.loads(as_served(classifier.predict(data)).model_dump_json())
    [line] = [vars(record) for record in caplog.records if record.name == "protoserve.access"]
    assert set(line["stages"]) == {"read", "decode", "queue", "infer", "evidence", "encode"}
    assert (line["images"], line["bytes"]) == (1, len(data))


@one_thread_and_several
def test_an_answer_that_takes_too_long_is_cancelled(
    cores: int, run_app: RunApp, classifier: Classifier, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.predict.usable_cores", lambda: cores)
    client = run_app(answer_seconds=0.05)
    engine = classifier.engine
    run = engine.run

    def run_slowly(images: Any) -> Any:
        time.sleep(0.3)
        return run(images)

    monkeypatch.setattr(engine, "run", run_slowly)
    response = client.post("/v1/predict", content=photograph.read_bytes())
    check_problem(response, "answer_timeout")
    assert response.headers["retry-after"] == "5"


def test_an_image_whose_request_is_cancelled_is_not_inferred(
    run_app: RunApp, classifier: Classifier, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.predict.usable_cores", lambda: 1)
    fit, run = classifier.fit, classifier.engine.run
    cancelled = threading.Event()
    ran: list[bool] = []

    def slow(*arguments: Any, **named: Any) -> Any:
        image = fit(*arguments, **named)
        assert cancelled.wait(30)
        return image

    def count(images: Any) -> Any:
        ran.append(True)
        return run(images)

    monkeypatch.setattr(classifier, "fit", slow)
    monkeypatch.setattr(classifier.engine, "run", count)
    client = run_app(answer_seconds=2, lanes=1)
    assert client.post("/v1/predict", content=photograph.read_bytes()).status_code == 504
    cancelled.set()
    # The only inference thread takes this one after it has dropped the other.
    assert client.post("/v1/predict", content=photograph.read_bytes()).status_code == 200
    assert ran == [True]


@one_thread_and_several
def test_a_client_that_disconnects_while_it_waits_costs_no_inference(
    cores: int, holder: ModelHolder, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.predict.usable_cores", lambda: cores)
    app = create_app(Settings(lanes=1), holder.current)
    engine = holder.current().classifier.engine
    run, ran = engine.run, []

    def slow(images: Any) -> Any:
        ran.append(len(images))
        time.sleep(0.3)
        return run(images)

    monkeypatch.setattr(engine, "run", slow)
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/v1/predict", "raw_path": b"/v1/predict", "query_string": b"",
        "headers": [], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http", "http_version": "1.1",
        "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def send_request(disconnect_after: float) -> list[int]:
        sent: list[int] = []
        messages = iter([{"type": "http.request", "body": photograph.read_bytes(), "more_body": False}])

        async def receive() -> Any:
            if (message := next(messages, None)) is not None:
                return message
            await anyio.sleep(disconnect_after)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])

        await app(dict(scope), receive, send)
        return sent

    async def work() -> None:
        answers: dict[str, list[int]] = {}

        async def keep(name: str, disconnect_after: float) -> None:
            answers[name] = await send_request(disconnect_after)

        async with anyio.create_task_group() as group:
            group.start_soon(keep, "stays", 60)
            await anyio.sleep(0.1)
            group.start_soon(keep, "leaves", 0.05)
        assert answers == {"stays": [200], "leaves": [499]}

    anyio.run(work)
    assert ran == [1]


def slow_engine(monkeypatch: pytest.MonkeyPatch, classifier: Classifier, gate: threading.Event) -> None:
    """Let inferences wait for the gate."""
    run = classifier.engine.run

    def run_slowly(images: Any) -> Any:
        gate.wait(30)
        return run(images)

    monkeypatch.setattr(classifier.engine, "run", run_slowly)


@one_thread_and_several
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/predict/batch"])
@pytest.mark.parametrize("step", ["fit", "infer"])
def test_the_deadline_holds_on_every_path_while_a_thread_works_on(
    step: str,
    path: str,
    cores: int,
    run_app: RunApp,
    classifier: Classifier,
    photograph: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.routes.predict.usable_cores", lambda: cores)
    gate, fit = threading.Event(), classifier.fit
    if step == "infer":
        slow_engine(monkeypatch, classifier, gate)
    else:
        monkeypatch.setattr(classifier, "fit", lambda *args, **named: gate.wait(30) and fit(*args, **named))
    client = run_app(answer_seconds=0.2, lanes=2)
    files = [("image", ("a.jpg", photograph.read_bytes())), ("image", ("b.jpg", photograph.read_bytes()))]
    start = time.monotonic()
    try:
        response = client.post(path, files=files if path.endswith("batch") else files[:1])
        assert time.monotonic() - start < 5
    finally:
        gate.set()
    check_problem(response, "answer_timeout")


def test_memory_that_runs_out_is_ours(
    run_app: RunApp, classifier: Classifier, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = run_app()
    files = [("image", ("a.jpg", photograph.read_bytes()))]
    for error in (MemoryError(), OutOfMemoryError("none left")):

        def exhaust(*arguments: Any, failure: Exception = error, **named: Any) -> Any:
            raise failure

        monkeypatch.setattr(classifier, "fit", exhaust)
        response = client.post("/v1/predict", files=files)
        check_problem(response, "overloaded")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        [item] = client.post("/v1/predict/batch", files=files).json()["results"]
        assert item["problem"]["code"] == "overloaded"
    # Nothing of it stays reserved.
    monkeypatch.undo()
    assert client.post("/v1/predict", files=files).status_code == 200


@one_thread_and_several
def test_readiness_follows_the_lanes(
    cores: int, run_app: RunApp, classifier: Classifier, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.predict.usable_cores", lambda: cores)
    gate = threading.Event()
    slow_engine(monkeypatch, classifier, gate)
    client = run_app(answer_seconds=60, wait_seconds=0.3, lanes=2)
    data = photograph.read_bytes()
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(client.post, "/v1/predict", content=data)
            time.sleep(0.5)
            # One lane is free.
            assert client.get("/readyz").status_code == 200
            second = pool.submit(client.post, "/v1/predict", content=data)
            deadline = time.monotonic() + 20
            while (response := client.get("/readyz")).status_code == 200:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            check_problem(response, "not_ready")
            assert client.get("/livez").status_code == 200
        finally:
            gate.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert client.get("/readyz").status_code == 200


def test_a_lane_that_outlasts_every_deadline_is_not_ready(
    run_app: RunApp, classifier: Classifier, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    slow_engine(monkeypatch, classifier, gate)
    client = run_app(answer_seconds=0.2, lanes=2)
    try:
        check_problem(client.post("/v1/predict", content=photograph.read_bytes()), "answer_timeout")
        time.sleep(0.1)
        check_problem(client.get("/readyz"), "not_ready")
    finally:
        gate.set()
    while client.get("/readyz").status_code != 200:
        time.sleep(0.02)


def test_a_large_picture_gets_the_prediction_of_the_python_interface(run_app: RunApp, classifier: Classifier) -> None:
    data = bombs.portrait(3200, 2400) + bytes(4_000_000)
    lossless = bombs.flat_webp(2300)
    client = run_app()
    for sent in (data, lossless):
        response = client.post("/v1/predict", content=sent)
        assert response.text == as_served(classifier.predict(sent)).model_dump_json()
    [item] = client.post("/v1/predict/batch", files=[("image", ("a", lossless))]).json()["results"]
    assert item["prediction"] == json.loads(as_served(classifier.predict(lossless)).model_dump_json())


def test_content_in_another_form_is_named_to_the_sender(client: TestClient, photograph: Path) -> None:
    for content, named in (
        (base64.b64encode(photograph.read_bytes()), "base64 text of a JPEG"),
        (b"data:image/jpeg;base64," + base64.b64encode(photograph.read_bytes()), "text of a data URL"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic", "is HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf", "is AVIF"),
    ):
        document = check_problem(client.post("/v1/predict", content=content), "unsupported_image")
        assert named in document["detail"]


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_a_format_that_an_operator_admits_is_decoded_in_a_process(
    kind: str, run_app: RunApp, classifier: Classifier
) -> None:
    data = bombs.flat(kind, 120, 80)
    check_problem(run_app().post("/v1/predict", content=data), "unsupported_image")
    response = run_app(formats=("JPEG", kind)).post("/v1/predict", content=data)
    assert response.text == as_served(classifier.predict(data)).model_dump_json()

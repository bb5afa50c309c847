"""What is around every answer: ids, headers, keys, pages of other origins, log lines, time limits."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from service.access import Key, find_key, new_key, read_key
from service.app import create_app
from service.current import CurrentModel
from service.logs import JsonFormatter, TextFormatter
from service.settings import Settings

if TYPE_CHECKING:
    from starlette.testclient import TestClient


def ask(client: TestClient, current: CurrentModel, **settings: Any) -> TestClient:
    return type(client)(create_app(Settings(**settings), current), raise_server_exceptions=False)


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/healthz", "/v1/model", "/v1/prototypes/0/image", "/nope", "/metrics"]
)
def test_every_answer_has_an_id_and_headers_for_browsers(client: TestClient, path: str) -> None:
    headers = client.get(path, headers={"x-request-id": "abc-123"}).headers
    assert headers["x-request-id"] == "abc-123"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'quote"', "täg".encode()])
def test_an_id_that_does_not_belong_into_logs_is_replaced(client: TestClient, given: Any) -> None:
    found = client.get("/livez", headers={"x-request-id": given}).headers["x-request-id"]
    assert len(found) == 32
    assert found.isalnum()


# ---- keys


def test_only_the_holders_of_keys_get_answers(client: TestClient, current: CurrentModel, photograph: Path) -> None:
    (one, known_one), (two, known_two) = new_key("one"), new_key("two")
    asking = ask(client, current, api_keys=(known_one, known_two))
    data = photograph.read_bytes()
    for headers in ({"authorization": f"Bearer {one}"}, {"authorization": f"bearer {two}"}, {"x-api-key": two}):
        assert asking.post("/v1/predict", content=data, headers=headers).status_code == 200
    for headers in ({}, {"x-api-key": one + "x"}, {"x-api-key": known_one.hash}, {"authorization": f"Basic {one}"}):
        response = asking.post("/v1/predict", content=data, headers=headers)
        assert (response.status_code, response.json()["code"]) == (401, "invalid_key")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert one not in response.text
    for path, status in {
        "/livez": 200,
        "/readyz": 200,
        "/openapi.json": 200,
        "/": 200,
        "/metrics": 401,
        "/x": 401,
    }.items():
        assert asking.get(path).status_code == status, path


def test_settings_take_hashes_and_show_names(monkeypatch: pytest.MonkeyPatch) -> None:
    secret, known = new_key("camera-1")
    monkeypatch.setenv("PROTOSERVE_API_KEYS", f"{known.name}:{known.hash}, other:{'0' * 64}")
    settings = Settings()
    assert find_key(secret, settings.api_keys) == known
    assert settings.shown()["api_keys"] == ["camera-1", "other"]
    assert known.hash not in json.dumps(settings.shown())


@pytest.mark.parametrize("text", ["", "name", "name:abc", f":{'0' * 64}", f"a b:{'0' * 64}", f"name:{'0' * 64}x"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME:HASH"):
        read_key(text)


def test_a_hash_is_that_of_the_key() -> None:
    import hashlib

    secret, known = new_key("a")
    assert known == Key("a", hashlib.sha256(secret.encode()).hexdigest())
    assert len({new_key("a")[0] for _ in range(20)}) == 20


# ---- pages of other origins


def test_pages_of_allowed_origins_may_ask_and_others_get_a_problem(
    client: TestClient, current: CurrentModel, photograph: Path
) -> None:
    _, known = new_key("page")
    asking = ask(client, current, cors_origins=("https://shop.example",), api_keys=(known,))
    before = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    answer = asking.options("/v1/predict", headers=before | {"access-control-request-headers": "x-api-key"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    refused = asking.options("/v1/predict", headers=before | {"origin": "https://evil.example"})
    assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in refused.headers
    # A refusal can be read by the page that caused it.
    denied = asking.post("/v1/predict", content=photograph.read_bytes(), headers={"origin": "https://shop.example"})
    assert denied.status_code == 401
    assert denied.headers["access-control-allow-origin"] == "https://shop.example"


def test_without_origins_no_other_page_may_read(client: TestClient) -> None:
    response = client.get("/v1/model", headers={"origin": "https://shop.example"})
    assert "access-control-allow-origin" not in response.headers


# ---- log lines


@pytest.fixture(autouse=True)
def all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "protoserve")


def access(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [line for line in caplog.records if line.name == "protoserve.access"]


def test_a_prediction_s_line_says_all_but_what_is_in_the_picture(
    client: TestClient, caplog: pytest.LogCaptureFixture, photograph: Path
) -> None:
    data = photograph.read_bytes()
    client.post("/v1/predict?top_k=1", content=data, headers={"x-request-id": "r-1"})
    [record] = access(caplog)
    line = json.loads(JsonFormatter().format(record))
    assert line["request_id"] == "r-1"
    assert (line["route"], line["method"], line["status"], line["level"]) == ("/v1/predict", "POST", 200, "info")
    assert (line["bytes"], line["images"]) == (len(data), 1)
    assert line["model"].startswith("sha256:")
    assert set(line["stages"]) == {"read", "decode", "queue", "infer", "evidence", "encode"}
    assert all(0 <= seconds <= line["seconds"] for seconds in line["stages"].values())
    assert "request_id=r-1" in TextFormatter().format(record)


def test_a_refusal_s_line_has_its_code_and_probes_are_quiet(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.post("/v1/predict", content=b"no picture")
    client.get("/livez")
    client.get("/" + "long" * 100)
    refused, probe, unknown = access(caplog)
    assert vars(refused)["code"] == "unsupported_image"
    assert probe.levelno == logging.DEBUG
    assert len(vars(unknown)["path"]) == 200


def test_a_traceback_stays_within_its_line() -> None:
    try:
        raise ValueError("why\nso")
    except ValueError as error:
        record = logging.LogRecord(
            "protoserve.x", logging.ERROR, "f", 1, "it %s", ("broke",), (type(error), error, None)
        )
    written = JsonFormatter().format(record)
    assert "\n" not in written
    line = json.loads(written)
    assert line["message"] == "it broke"
    assert "ValueError: why" in line["traceback"]


# ---- back-pressure


def test_a_full_queue_and_full_memory_are_told_at_once(
    client: TestClient, current: CurrentModel, photograph: Path
) -> None:
    asking = ask(client, current, max_queue=16, max_bytes=50_000, max_memory=50_000)
    data = photograph.read_bytes()
    assert len(data) < 50_000
    app: Any = asking.app
    predicting = next(route.endpoint.__self__ for route in app.routes if route.path == "/v1/predict")
    with predicting.pictures.hold(16):
        response = asking.post("/v1/predict", content=data)
        assert (response.status_code, response.json()["code"]) == (503, "overloaded")
        assert response.headers["retry-after"] == "1"
    with predicting.memory.hold(50_001 - len(data)):
        response = asking.post("/v1/predict", content=data)
        assert (response.status_code, response.json()["code"]) == (503, "overloaded")
        assert "50,000" in response.json()["detail"]
    assert asking.post("/v1/predict", content=data).status_code == 200
    assert (predicting.pictures.used, predicting.memory.used) == (0, 0)


# A machine of one core, where a picture goes all its way in one thread, and a large one, where every step has its own.
both_ways = pytest.mark.parametrize("cores", [1, 64])


@both_ways
def test_a_picture_is_answered_the_same_in_one_thread_and_in_several(
    cores: int,
    client: TestClient,
    current: CurrentModel,
    photograph: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.predicting.usable_cores", lambda: cores)
    data = photograph.read_bytes()
    with caplog.at_level(logging.INFO, "protoserve.access"):
        response = ask(client, current).post("/v1/predict", content=data)
    assert response.json() == json.loads(current().classifier.predict(data).model_dump_json())
    [line] = [vars(record) for record in caplog.records if record.name == "protoserve.access"]
    assert set(line["stages"]) == {"read", "decode", "queue", "infer", "evidence", "encode"}
    assert (line["images"], line["bytes"]) == (1, len(data))


@both_ways
def test_an_answer_that_takes_too_long_is_given_up(
    cores: int, client: TestClient, current: CurrentModel, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.predicting.usable_cores", lambda: cores)
    asking = ask(client, current, answer_seconds=0.05)
    engine = current().classifier.engine
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda images: (time.sleep(0.3), run(images))[1])
    response = asking.post("/v1/predict", content=photograph.read_bytes())
    assert (response.status_code, response.json()["code"]) == (504, "answer_timeout")


def test_a_picture_nobody_waits_for_any_more_is_not_inferred(
    client: TestClient, current: CurrentModel, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.predicting.usable_cores", lambda: 1)
    classifier = current().classifier
    fit, run = classifier.fit, classifier.engine.run
    given_up = threading.Event()
    ran: list[bool] = []

    def slow(*arguments: Any, **named: Any) -> Any:
        image = fit(*arguments, **named)
        assert given_up.wait(30)
        return image

    def count(images: Any) -> Any:
        ran.append(True)
        return run(images)

    monkeypatch.setattr(classifier, "fit", slow)
    monkeypatch.setattr(classifier.engine, "run", count)
    asking = ask(client, current, answer_seconds=2, lanes=1)
    assert asking.post("/v1/predict", content=photograph.read_bytes()).status_code == 504
    given_up.set()
    # The only lane is free for this one when it is done with the other.
    assert asking.post("/v1/predict", content=photograph.read_bytes()).status_code == 200
    assert ran == [True]


@both_ways
def test_a_client_that_goes_away_while_it_waits_costs_no_inference(
    cores: int, current: CurrentModel, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.predicting.usable_cores", lambda: cores)
    app = create_app(Settings(lanes=1), current)
    engine = current().classifier.engine
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

    async def request(leave_after: float) -> list[int]:
        sent: list[int] = []
        messages = iter([{"type": "http.request", "body": photograph.read_bytes(), "more_body": False}])

        async def receive() -> Any:
            if (message := next(messages, None)) is not None:
                return message
            await anyio.sleep(leave_after)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])

        await app(dict(scope), receive, send)
        return sent

    async def work() -> None:
        answers: dict[str, list[int]] = {}

        async def keep(name: str, leave_after: float) -> None:
            answers[name] = await request(leave_after)

        async with anyio.create_task_group() as group:
            group.start_soon(keep, "stays", 60)
            await anyio.sleep(0.1)
            group.start_soon(keep, "leaves", 0.05)
        assert answers == {"stays": [200], "leaves": [499]}

    anyio.run(work)
    assert ran == [1]

"""`protoserve.client` against the real routes: answers, refusals, retries."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from protoserve.client import AsyncClient, Client
from protoserve.errors import InputError, ServiceError
from protoserve.inference.classifier import Classifier
from service.api_keys import create_key
from service.app import create_app
from service.model.holder import ModelHolder
from service.settings import Settings
from tests.service.predictions import as_served

ADDRESS = "http://service"


class Bridge(httpx.BaseTransport):
    """A synchronous transport to the routes; `before` may answer instead of them."""

    def __init__(self, app: ASGIApp, before: Callable[[], httpx.Response | None] = lambda: None) -> None:
        self.inner = httpx.ASGITransport(app)
        self.before = before

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if (answer := self.before()) is not None:
            return answer
        body = request.read()

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.inner, base_url=ADDRESS) as client:
                return await client.request(request.method, request.url, headers=request.headers, content=body)

        response = asyncio.run(ask())
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)


@pytest.fixture(scope="module")
def holder(tiny_bundle: Path) -> ModelHolder:
    return ModelHolder(lambda: tiny_bundle, Settings(device="cpu", threads=1))


@pytest.fixture(scope="module")
def classifier(holder: ModelHolder) -> Classifier:
    return holder.current().classifier


@pytest.fixture
def app(holder: ModelHolder) -> ASGIApp:
    return create_app(Settings(max_bytes=200_000, max_images=3), holder.current)


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


def test_the_asynchronous_client_returns_the_same(app: ASGIApp, classifier: Classifier, photograph: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(ADDRESS, transport=httpx.ASGITransport(app)) as client:
            assert await client.is_ready()
            assert (await client.model())["name"] == "tiny"
            assert await client.predict(photograph) == as_served(classifier.predict(photograph))
            [only] = await client.predict_batch([photograph], top_k=1)
            assert only == as_served(classifier.predict(photograph, top_k=1))
            with pytest.raises(ServiceError) as raised:
                await client.predict(b"no picture")
            assert raised.value.code == "unsupported_image"

    asyncio.run(ask())


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


@pytest.mark.parametrize("status", [429, 503])
def test_a_request_to_a_busy_service_is_retried_after_retry_after(app: ASGIApp, photograph: Path, status: int) -> None:
    busy = iter([httpx.Response(status, headers={"retry-after": "1"}), httpx.Response(status)])
    begun = time.monotonic()
    with Client(ADDRESS, transport=Bridge(app, lambda: next(busy, None))) as client:
        assert client.predict(photograph).path
    assert time.monotonic() - begun >= 1.0
    assert next(busy, None) is None


def test_retries_end_when_the_service_stays_busy(app: ASGIApp, photograph: Path) -> None:
    document: Any = {"code": "overloaded", "detail": "no turn", "status": 503}
    tries: list[int] = []

    def busy() -> httpx.Response:
        tries.append(1)
        return httpx.Response(503, json=document)

    with (
        Client(ADDRESS, retries=1, transport=Bridge(app, busy)) as client,
        pytest.raises(ServiceError, match="no turn") as raised,
    ):
        client.predict(photograph)
    assert (raised.value.code, len(tries)) == ("overloaded", 2)


def test_no_answer_and_an_unknown_answer_have_different_codes(app: ASGIApp, photograph: Path) -> None:
    def refuse() -> httpx.Response:
        raise httpx.ConnectError("refused")

    with Client(ADDRESS, retries=0, transport=Bridge(app, refuse)) as client:
        assert not client.is_ready()
        with pytest.raises(ServiceError, match="is the service running") as raised:
            client.predict(photograph)
        assert raised.value.code == "unreachable"
    with Client(ADDRESS, transport=Bridge(app, lambda: httpx.Response(502, text="<html>"))) as client:
        with pytest.raises(ServiceError, match="502") as raised:
            client.predict(photograph)
        assert raised.value.code == "unknown"


def test_the_key_is_sent(holder: ModelHolder, photograph: Path) -> None:
    secret, known = create_key("test")
    app = create_app(Settings(api_keys=(known,)), holder.current)
    with Client(ADDRESS, key=secret, transport=Bridge(app)) as client:
        assert client.predict(photograph).path
    with Client(ADDRESS, transport=Bridge(app)) as client, pytest.raises(ServiceError) as raised:
        client.predict(photograph)
    assert (raised.value.code, raised.value.status) == ("invalid_key", 401)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>Log in</html>"),
        httpx.Response(200, content=b""),
        httpx.Response(200, json={"results": [{}]}),
        httpx.Response(200, json=[]),
        httpx.Response(200, content=DEEP),
        httpx.Response(200, content=b"\xff\xfe"),
        httpx.Response(204),
        httpx.Response(301, headers={"location": "https://elsewhere/"}),
        httpx.Response(404, content=DEEP),
        httpx.Response(400, json={"code": 7, "detail": None, "status": 400}),
        httpx.Response(400, json={"code": "x", "status": "many"}),
        httpx.Response(400, json={"code": None}),
        httpx.Response(500, json="sorry"),
        httpx.Response(503, headers={"retry-after": "9" * 400}, json={"code": "x", "status": None}),
    ],
)
def test_a_strange_answer_is_a_service_error(app: ASGIApp, photograph: Path, answer: httpx.Response) -> None:
    with Client(ADDRESS, retries=0, transport=Bridge(app, lambda: answer)) as client:
        for ask in (lambda: client.predict(photograph), lambda: client.predict_batch([photograph])):
            with pytest.raises(ServiceError, match=str(answer.status_code)) as raised:
                ask()
            assert (raised.value.code, raised.value.status) == ("unknown", answer.status_code)


@pytest.mark.parametrize("content", [b"<html>", b"[1]", b"", DEEP])
def test_a_strange_description_of_the_model_is_a_service_error(app: ASGIApp, content: bytes) -> None:
    with (
        Client(ADDRESS, transport=Bridge(app, lambda: httpx.Response(200, content=content))) as client,
        pytest.raises(ServiceError, match="is this a ProtoServe service"),
    ):
        client.model()


def test_an_answer_to_another_batch_is_a_service_error(app: ASGIApp, photograph: Path) -> None:
    with (
        Client(ADDRESS, transport=Bridge(app, lambda: httpx.Response(200, json={"results": []}))) as client,
        pytest.raises(ServiceError, match="0 predictions for 1 pictures"),
    ):
        client.predict_batch([photograph])


def test_an_answer_that_cannot_be_unpacked_is_a_service_error(app: ASGIApp, photograph: Path) -> None:
    def torn() -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, content=b"no gzip")

    with Client(ADDRESS, transport=Bridge(app, torn)) as client:
        with pytest.raises(ServiceError):
            client.predict(photograph)
        assert not client.is_ready()


@pytest.mark.parametrize(
    "address", ["nonsense", "", "ftp://a", "http://", "127.0.0.1:3000", "http://a:99999999", "http://[::"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_impossible_address_is_bad_input(kind: type[Client] | type[AsyncClient], address: str) -> None:
    with pytest.raises(InputError):
        kind(address)


@pytest.mark.parametrize("key", ["", "sec\nret", " secret", "ключ"])
def test_an_impossible_key_is_bad_input_and_not_repeated(key: str) -> None:
    with pytest.raises(InputError, match="API key") as raised:
        Client(ADDRESS, key=key)
    assert not key or key not in str(raised.value)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_refused_connection_mentions_the_proxy_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    with Client(f"http://127.0.0.1:{free_port()}", retries=0) as client, pytest.raises(ServiceError) as raised:
        client.model()
    assert "proxy" not in str(raised.value)
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{port}")
    with Client("http://model.example:3000", retries=0) as client, pytest.raises(ServiceError) as raised:
        client.model()
    assert raised.value.code == "unreachable"
    assert f"through the proxy 127.0.0.1:{port} (HTTP_PROXY)" in str(raised.value)
    assert "NO_PROXY=model.example" in str(raised.value)
    assert "secret" not in str(raised.value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Client(f"http://127.0.0.1:{port}", retries=0) as client, pytest.raises(ServiceError) as raised:
        client.model()
    assert "proxy" not in str(raised.value)


def test_an_impossible_proxy_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(InputError, match="proxy"):
        Client(ADDRESS)

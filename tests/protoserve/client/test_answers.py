"""What the client makes of answers that are not those of the service."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from protoserve.client import Client
from protoserve.errors import ServiceError
from tests.protoserve.client.bridge import ADDRESS, Bridge


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


@pytest.mark.parametrize("document", [{}, {"prototypes": 1, "cursor": None}, {"prototypes": [], "cursor": 1}])
def test_a_page_of_another_shape_is_a_service_error(app: ASGIApp, document: object) -> None:
    with (
        Client(ADDRESS, transport=Bridge(app, lambda: httpx.Response(200, json=document))) as client,
        pytest.raises(ServiceError, match="without prototypes"),
    ):
        client.prototypes()


def test_a_receipt_of_another_shape_is_a_service_error(app: ASGIApp) -> None:
    with (
        Client(ADDRESS, transport=Bridge(app, lambda: httpx.Response(201, json={"sha256": 1}))) as client,
        pytest.raises(ServiceError, match="SHA-256"),
    ):
        client.feedback_picture(b"picture")

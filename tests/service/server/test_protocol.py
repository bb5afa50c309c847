"""A real uvicorn with our protocol: malformed requests, headers that never end, a server that stops."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service.app import create_app
from service.model.holder import ModelHolder
from service.server.protocol import StrictProtocol
from service.settings import Settings


@contextmanager
def serving(holder: ModelHolder, header_seconds: float, **settings: Any) -> Iterator[tuple[int, uvicorn.Server]]:
    class Protocol(StrictProtocol):
        pass

    Protocol.header_seconds = header_seconds
    app = create_app(Settings(**settings), holder.current)
    config = uvicorn.Config(app, http=Protocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1], server
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(holder: ModelHolder) -> Iterator[int]:
    with serving(holder, header_seconds=0.4, read_seconds=0.5) as (port, _):
        yield port


def answer(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """Read until the connection closes; return the status, headers and body of the only response."""
    connection.settimeout(10)
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.lower(), body


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_a_malformed_request_gets_a_problem(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        status, head, body = answer(connection)
    assert status == 400
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "malformed_request"


def test_headers_that_never_end_are_cut_off(port: int) -> None:
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\n")
        for number in range(100):
            try:
                connection.sendall(b"X-Slow-%d: 1\r\n" % number)
            except OSError:
                break
            time.sleep(0.05)
            if time.monotonic() - begun > 0.8:
                break
        status, head, body = answer(connection)
    assert time.monotonic() - begun < 5
    assert status == 408
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "request_timeout"


def test_a_connection_without_a_request_is_closed(port: int) -> None:
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert answer(connection)[0] == 408
    assert 0.3 < time.monotonic() - begun < 5


def test_a_slow_body_is_a_problem(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        status, head, body = answer(connection)
    assert (status, json.loads(body)["code"]) == (408, "request_timeout")
    assert b"connection: close" in head


def test_the_time_for_headers_starts_anew_for_every_request_of_a_connection(port: int, photograph: Path) -> None:
    data = photograph.read_bytes()
    request = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        for _ in range(3):
            connection.sendall(request)
            received = b""
            while b"}]}" not in received:
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200")
            time.sleep(0.25)
        connection.sendall(b"GET / HT")
        assert answer(connection)[0] == 408


def test_a_server_that_stops_answers_the_requests_it_has_accepted(
    holder: ModelHolder, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = holder.current().classifier.engine
    run = engine.run

    def run_slowly(images: Any) -> Any:
        time.sleep(0.5)
        return run(images)

    monkeypatch.setattr(engine, "run", run_slowly)
    data = photograph.read_bytes()
    with (
        serving(holder, header_seconds=5) as (port, server),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        time.sleep(0.2)
        server.should_exit = True
        status, _, body = answer(connection)
    assert status == 200
    assert json.loads(body)["levels"]

"""A real uvicorn with our protocol: what is no HTTP, headers that never end, a server that stops."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from service.app import create_app
from service.current import CurrentModel
from service.protocol import StrictProtocol
from service.settings import Settings


@contextmanager
def serving(current: CurrentModel, header_seconds: float, **settings: float) -> Iterator[tuple[int, uvicorn.Server]]:
    class Protocol(StrictProtocol):
        pass

    Protocol.header_seconds = header_seconds
    app = create_app(Settings(**settings), current)
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
def port(current: CurrentModel) -> Iterator[int]:
    with serving(current, header_seconds=0.4, read_seconds=0.5) as (port, _):
        yield port


def answer(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """The status, headers and body of the one answer before the connection ends."""
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
def test_what_is_no_http_gets_a_problem(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(sent)
        status, head, body = answer(connection)
    assert status == 400
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "malformed_request"


def test_headers_that_never_end_are_not_waited_for(port: int) -> None:
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


def test_a_body_that_comes_too_slowly_is_a_problem(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        status, head, body = answer(connection)
    assert (status, json.loads(body)["code"]) == (408, "request_timeout")
    assert b"connection: close" in head


def test_the_time_for_headers_counts_for_every_request_of_a_connection_anew(port: int, photograph: Path) -> None:
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


def test_a_server_that_stops_answers_what_it_has_begun(
    current: CurrentModel, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = current().classifier.engine
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda images: (time.sleep(0.5), run(images))[1])
    data = photograph.read_bytes()
    with (
        serving(current, header_seconds=5) as (port, server),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        time.sleep(0.2)
        server.should_exit = True
        status, _, body = answer(connection)
    assert status == 200
    assert json.loads(body)["levels"]

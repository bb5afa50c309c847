"""A real uvicorn with our protocol: what a client may send, how long it may take, and one answer per request."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from service.api_keys import create_key
from service.model.holder import ModelHolder
from service.server import protocol
from service.server.protocol import HEADER_COUNT, ConnectionLimits, StrictProtocol
from tests.service.server.connections import answer, exchange, serving, serving_app


@pytest.fixture(scope="module")
def port(holder: ModelHolder) -> Iterator[int]:
    with serving(holder, ConnectionLimits(header_seconds=0.4), read_seconds=0.5) as (port, _):
        yield port


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
        serving(holder, ConnectionLimits(header_seconds=5)) as (port, server),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        time.sleep(0.2)
        server.should_exit = True
        status, _, body = answer(connection)
    assert status == 200
    assert json.loads(body)["levels"]


HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X-Long: " + b"a" * 70_000,
        HEAD + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 70_000,
        HEAD + b"a:b\r\n" * (HEADER_COUNT + 1),
        HEAD + b"a:b\r\n" * 50_000 + b"\r\n",
    ],
    ids=["endless header", "long header", "long path", "many headers", "very many headers"],
)
def test_headers_are_limited_in_bytes_and_number(port: int, sent: bytes) -> None:
    received = exchange(port, sent)
    assert received.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), received[:100]
    assert json.loads(received.partition(b"\r\n\r\n")[2])["code"] == "headers_too_large"


def test_as_many_headers_as_allowed_are_read(port: int) -> None:
    # With Host and Connection.
    most = HEAD + b"a:b\r\n" * (HEADER_COUNT - 2) + b"Connection: close\r\n\r\n"
    assert exchange(port, most).startswith(b"HTTP/1.1 200")
    assert exchange(port, HEAD + b"X: " + b"a" * 60_000 + b"\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_trailers_are_limited_and_not_kept(port: int) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    for trailers in (b"a:b\r\n" * 100_000, b"a: " + b"b" * 300_000):
        received = exchange(port, head + trailers)
        assert received.startswith(b"HTTP/1.1 431"), received[:100]
    short = head.replace(b"Host: x", b"Host: x\r\nConnection: close") + b"a: b\r\n\r\n"
    assert b'"code":"unsupported_image"' in exchange(port, short)


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("protocol_name", [b"h2c", b"websocket", b"anything"])
def test_an_upgrade_is_ignored_and_its_body_is_not_a_request(port: int, photograph: Path, protocol_name: bytes) -> None:
    smuggled = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n" + UPGRADE % protocol_name
    received = exchange(port, head + b"Content-Length: %d\r\n\r\n" % len(smuggled), smuggled)
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 415")
    data = photograph.read_bytes()
    received = exchange(port, head + b"Content-Length: %d\r\n\r\n" % len(data), data[:1000], data[1000:])
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1 ") == 1


def test_a_request_after_an_upgrade_is_answered_too(port: int) -> None:
    first = HEAD + UPGRADE % b"h2c" + b"\r\n"
    received = exchange(port, first + HEAD + b"Connection: close\r\n\r\n")
    assert received.count(b"HTTP/1.1 200") == 2


def test_a_websocket_handshake_needs_a_key_and_gets_a_problem(holder: ModelHolder) -> None:
    _, key = create_key("camera")
    handshake = (
        b"GET /v1/model HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with serving(holder, ConnectionLimits(), api_keys=(key,)) as (port, _):
        received = exchange(port, handshake)
    assert received.startswith(b"HTTP/1.1 401")
    assert b'"code":"invalid_key"' in received
    assert b"x-request-id" in received.lower()


def test_a_tunnel_is_refused(port: int) -> None:
    received = exchange(port, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: a\r\n"], ids=["none", "two"])
def test_a_request_has_one_host(port: int, hosts: bytes) -> None:
    received = exchange(port, b"GET /livez HTTP/1.1\r\n" + hosts + b"\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    assert b"Host headers; send exactly one" in received


def test_http_1_0_needs_no_host(port: int) -> None:
    assert exchange(port, b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_requests_sent_together_are_answered_in_order(port: int) -> None:
    paths = [b"/livez", b"/nope", b"/v1/taxonomy"] * 40
    requests = b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths)
    received = exchange(port, requests + HEAD + b"Connection: close\r\n\r\n")
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"404", b"200"] * 40 + [b"200"]


def test_bytes_after_a_request_do_not_replace_its_answer(port: int) -> None:
    received = exchange(port, b"GET /v1/taxonomy HTTP/1.1\r\nHost: x\r\n\r\nGARBAGE\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1 ") == 1


class ShortLimits(StrictProtocol):
    limits = ConnectionLimits(write_seconds=0.3)


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with more than the kernel's buffers hold."""
    size = 20_000_000
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(size), "more_body": False})


def test_a_client_that_does_not_read_is_disconnected() -> None:
    with (
        serving_app(large, ShortLimits) as (port, server),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.sendall(HEAD + b"\r\n")
        deadline = time.monotonic() + 10
        while not server.server_state.total_requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.server_state.connections
        while server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.server_state.connections


def test_a_client_that_reads_slowly_gets_everything() -> None:
    received = 0
    with serving_app(large, ShortLimits) as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        while chunk := connection.recv(4_000_000):
            received += len(chunk)
            time.sleep(0.02)
    assert received > 20_000_000


HALF = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"
CLOSING = b"Connection: close\r\n\r\n"


def test_above_the_connection_limit_only_probes_are_answered(holder: ModelHolder) -> None:
    with serving(holder, ConnectionLimits(connections=2)) as (port, _):
        busy = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for connection in busy:
            connection.sendall(HALF)
        time.sleep(0.2)
        refused = exchange(port, b"GET /v1/model HTTP/1.1\r\nHost: x\r\n" + CLOSING)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b'"code":"overloaded"' in refused and b"limit of 2 connections" in refused
        for probe in (b"/livez", b"/readyz"):
            assert exchange(port, b"GET %s HTTP/1.1\r\nHost: x\r\n" % probe + CLOSING).startswith(b"HTTP/1.1 200")
        for connection in busy:
            connection.close()


def test_above_the_connection_limit_the_longest_idle_connection_is_closed(holder: ModelHolder) -> None:
    with serving(holder, ConnectionLimits(connections=2)) as (port, _):
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        time.sleep(0.1)
        model = b"GET /v1/model HTTP/1.1\r\nHost: x\r\n" + CLOSING
        assert exchange(port, model).startswith(b"HTTP/1.1 200")
        assert idle[0].recv(1) == b""
        idle[1].sendall(model)
        assert idle[1].recv(12) == b"HTTP/1.1 200"
        for connection in idle:
            connection.close()


def test_far_above_the_connection_limit_connections_are_refused(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "RESERVE", 0)
    with (
        serving(holder, ConnectionLimits(connections=1)) as (port, _),
        socket.create_connection(("127.0.0.1", port)) as busy,
    ):
        busy.sendall(HALF)
        time.sleep(0.1)
        assert exchange(port).startswith(b"HTTP/1.1 503")


def test_the_body_of_a_refused_request_is_not_read_without_end(
    holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "DROPPED_BYTES", 1_000_000)
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n"
    sent = 0
    with (
        serving(holder, ConnectionLimits(), max_bytes=100_000) as (port, _),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.settimeout(10)
        connection.sendall(head)
        assert connection.recv(12) == b"HTTP/1.1 413"
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            while sent < 100_000_000:
                sent += connection.send(bytes(65536))
    assert sent < 50_000_000


def test_a_connection_is_used_again_after_a_refused_body(holder: ModelHolder) -> None:
    body = bytes(150_000)
    request = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(holder, ConnectionLimits(), max_bytes=100_000) as (port, _):
        received = exchange(port, request, body, HEAD + CLOSING)
    assert [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"413", b"200"]


def test_a_refused_body_that_never_ends_is_cut_off(holder: ModelHolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "DROPPED_SECONDS", 0.3)
    request = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with serving(holder, ConnectionLimits(), max_bytes=100_000) as (port, _):
        received = exchange(port, request, *[b"x"] * 30, pause=0.05)
    # Without a second answer.
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "framed", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"]
)
def test_requests_that_wait_for_their_turn_are_not_parsed(
    port: int, monkeypatch: pytest.MonkeyPatch, framed: bytes
) -> None:
    """Each costs kilobytes, and a packet holds thousands."""
    waiting: list[int] = []
    start = StrictProtocol.on_headers_complete

    def note(self: StrictProtocol) -> None:
        waiting.append(len(self.pipeline))
        start(self)

    monkeypatch.setattr(StrictProtocol, "on_headers_complete", note)
    first = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n" + framed
    received = exchange(port, first + (HEAD + b"\r\n") * 500 + HEAD + CLOSING)
    assert received.count(b"HTTP/1.1 200") == 501
    assert len(waiting) == 502 and max(waiting) < 20

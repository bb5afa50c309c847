"""HTTP below the application: what a connection may send, how long it may take, and how it is refused.

BentoML starts uvicorn and lets it choose its protocol class, from `uvicorn.protocols.http.auto`. We replace the class
there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import httptools
import uvicorn.protocols.http.auto as automatic
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.contract.problems import MEDIA_TYPE, Problem
from service.operations import metrics
from service.operations.request_context import RequestContext, bind_context

HEADER_BYTES: Final = 64 * 1024
HEADER_COUNT: Final = 256
# The most of a refused request's body that is read and dropped, so that clients that send all of it first can read
# the answer. Beyond it, the connection is closed.
DROPPED_BYTES: Final = 32_000_000
DROPPED_SECONDS: Final = 10.0
# The least that a client must take of an answer within `write_seconds`, unless it takes all that is left.
WRITTEN_BYTES: Final = 16 * 1024
# Connections above the limit on which only probes are answered, so that a full server is not restarted.
RESERVE: Final = 64
PROBES: Final = frozenset({"/livez", "/readyz", "/healthz"})
# How much is parsed at a time. Every request that is parsed ahead of its turn costs kilobytes, so that a packet full of
# short ones must not be parsed at once.
_STEP: Final = 512
_LONGEST_HEAD_STEP: Final = 4 * 1024
_LONGEST_BODY_STEP: Final = 64 * 1024
# Headers that ask for another protocol.
_UPGRADING: Final = frozenset({b"upgrade", b"http2-settings"})


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the connections of one worker.

    `header_seconds` is the longest time to receive a request's headers, `write_seconds` the longest time without
    progress in sending an answer, and `connections` the most connections on which all routes are answered.
    """

    header_seconds: float = 10.0
    write_seconds: float = 30.0
    connections: int = 1000


class StrictProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits, one answer per request, and problem documents for refusals.

    It counts the bytes and the number of headers (431), limits the time for them (408), and closes connections whose
    client does not read. It ignores requests to change the protocol (`Upgrade`), as HTTP allows: h2c and WebSocket
    handshakes are answered as the HTTP/1.1 requests that they also are.
    """

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Makes uvicorn treat handshakes as HTTP requests.
        self.ws_protocol_class = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._idle_since = time.monotonic()
        self._begun = False
        """Whether a part of a request has arrived whose end has not."""
        self._in_body = False
        """Whether the headers of that request have ended."""
        self._body_left = 0
        """Bytes of its body that are missing, as far as its length is known."""
        self._moved = False
        """Whether the parser has got beyond headers since the flag was cleared."""
        self._head_bytes = 0
        """Bytes since then."""
        self._dropped = 0
        self._held = b""
        """Bytes to parse once the requests before them are answered."""
        self._refusal: Problem | None = None
        """Why a callback stopped the parser."""
        self._ended = False
        """Whether further bytes are ignored."""

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first request's headers; make room where there are too many connections."""
        super().connection_made(transport)
        self._start_timer(self.limits.header_seconds, self._time_out)
        if len(self.connections) <= self.limits.connections or self._close_an_idle_connection():
            return
        if len(self.connections) > self.limits.connections + RESERVE:
            self._refuse(_crowded(self.limits.connections))
        else:
            self.app = _probes_only(self.app, self.limits.connections)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._held = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse `data` as far as requests can be answered, and set the timer for what is expected next."""
        if self._ended:
            return
        if self._held:
            self._held += data
            self.flow.pause_reading()
            return
        self._parse(data)

    def pause_writing(self) -> None:
        """Limit the time that the client may take to read."""
        super().pause_writing()
        self._watch_writing()

    def on_message_begin(self) -> None:
        """Reset the counts of a request."""
        super().on_message_begin()
        self._begun = self._moved = True
        self._in_body = False
        self._dropped = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, unless it is a trailer. Stops the parser if there are too many."""
        if self._in_body:
            return
        if len(self.headers) == HEADER_COUNT:
            self._stop(Problem("headers_too_large", f"the request has more than {HEADER_COUNT} headers; send fewer"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the answer. Stops the parser if the Host header is missing or repeated."""
        self._in_body = self._moved = True
        if self.parser.should_upgrade():
            # The parser stops after this request; `_without_upgrade` lets it start again.
            return
        lengths = [value for name, value in self.headers if name == b"content-length"]
        self._body_left = int(lengths[0]) if lengths else 0
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0"):
            self._stop(Problem("malformed_request", f"the request has {hosts} Host headers; send exactly one"))
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Note the progress."""
        self._moved = True

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, or drop it if the request was answered without it."""
        self._moved = True
        self._body_left -= len(body)
        if self.cycle.response_complete:
            self._dropped += len(body)
            if self._dropped > DROPPED_BYTES:
                self._close()
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._begun = self._in_body = False
        self._moved = True
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self.cycle.more_body = False

    def on_response_complete(self) -> None:
        """Go on with the bytes that waited for this answer."""
        self._idle_since = time.monotonic()
        self._watch_writing()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._held and not self.pipeline:
            held, self._held = self._held, b""
            self._parse(held)
        else:
            self._expect()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request."""
        self._refuse(
            self._refusal or Problem("malformed_request", "this is not an HTTP request; send HTTP/1.1"),
        )

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        position = 0
        while position < len(data) and not self._ended and not self.transport.is_closing():
            if self.pipeline:
                self._held = data[position:]
                self.flow.pause_reading()
                break
            step = data[position : self._end_of_step(data, position)]
            position += len(step)
            self._moved = False
            try:
                self.parser.feed_data(step)
            except httptools.HttpParserUpgrade as upgrade:
                data, position = self._without_upgrade() + step[upgrade.args[0] :] + data[position:], 0
            except httptools.HttpParserError:
                self.send_400_response("")
            self._head_bytes = 0 if self._moved else self._head_bytes + len(step)
            if self._head_bytes > HEADER_BYTES:
                self._refuse(
                    Problem(
                        "headers_too_large",
                        f"the request has more than {HEADER_BYTES:,} bytes of headers; send fewer",
                    )
                )
        self._expect()

    def _end_of_step(self, data: bytes, position: int) -> int:
        """Return where to stop parsing `data`: about where the current request ends."""
        if self._in_body and self._body_left > 0:
            return position + max(_STEP, self._body_left)
        # Headers end with a blank line, and so does a body in chunks.
        longest = _LONGEST_BODY_STEP if self._in_body else _LONGEST_HEAD_STEP
        blank = data.find(b"\r\n\r\n", position, position + longest)
        return position + longest if blank < 0 else max(blank + 4, position + _STEP)

    def _expect(self) -> None:
        """Set the timer for what this connection waits for."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._stop_timer()
        elif self._begun and self._timer is None:
            # The end of the headers, or of a body that is no longer needed.
            self._unset_keepalive_if_required()
            seconds, action = (
                (DROPPED_SECONDS, self._close) if self._in_body else (self.limits.header_seconds, self._time_out)
            )
            self._start_timer(seconds, action)
        elif not self._begun and self.cycle is not None:
            self._stop_timer()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _without_upgrade(self) -> bytes:
        """Return the current request's head without its wish for another protocol, for a new parser."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode("ascii")
        if method == b"CONNECT":
            self._refuse(Problem("malformed_request", "this service is not a proxy; send GET or POST"))
            return b""
        lines = [method + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADING)
            if name not in _UPGRADING and (value or name != b"connection"):
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._begun = self._in_body = False
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _stop(self, problem: Problem) -> None:
        """Stop the parser from within a callback: its error leads to `send_400_response`."""
        self._refusal = problem
        raise ValueError(str(problem))

    def _close_an_idle_connection(self) -> bool:
        """Close the connection that has been without a request for longest. Returns False when all have one."""
        idle = [
            other
            for other in self.connections
            if isinstance(other, StrictProtocol)
            and other is not self
            and (other.cycle is None or other.cycle.response_complete)
            and not other.transport.is_closing()
        ]
        if not idle:
            return False
        oldest = min(idle, key=lambda other: other._idle_since)
        oldest._close()
        # Now rather than when the transport notices, so that the next connection counts right.
        self.connections.discard(oldest)
        return True

    def _watch_writing(self) -> None:
        if self._write_timer is None and (waiting := self.transport.get_write_buffer_size()):
            self._write_timer = self.loop.call_later(self.limits.write_seconds, self._check_writing, waiting)

    def _check_writing(self, before: int) -> None:
        self._write_timer = None
        waiting = self.transport.get_write_buffer_size()
        if waiting > before - WRITTEN_BYTES and waiting:
            self.transport.abort()
        else:
            self._watch_writing()

    def _start_timer(self, seconds: float, action: Any) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(
                Problem(
                    "request_timeout",
                    f"no complete request arrived within {self.limits.header_seconds:g} seconds; send it again",
                )
            )

    def _close(self) -> None:
        self._ended = True
        self.transport.close()
        self._watch_writing()

    def _refuse(self, problem: Problem) -> None:
        """Answer with a problem and close. While an earlier request is being answered, only close after its answer."""
        if self._ended:
            return
        self._ended = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return
            if cycle.response_started or self.pipeline:
                # The answers before this one are not complete, so that none may be written now.
                self._close()
                return
        metrics.REJECTED.labels(problem.code).inc()
        document = problem.document
        body = document.model_dump_json().encode()
        head = (
            f"HTTP/1.1 {document.status} {document.title}\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self._close()


def install_strict_protocol(limits: ConnectionLimits) -> None:
    """Make this process's uvicorn use `StrictProtocol`."""
    StrictProtocol.limits = limits
    automatic.AutoHTTPProtocol = StrictProtocol


def _crowded(connections: int) -> Problem:
    return Problem(
        "overloaded",
        f"the service is at its limit of {connections:,} connections; try again later",
        {"Retry-After": "1", "Connection": "close"},
    )


def _probes_only(app: ASGIApp, connections: int) -> ASGIApp:
    """Wrap the application: it answers probes, and any other request is refused."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            problem = _crowded(connections)
            metrics.REJECTED.labels(problem.code).inc()
            with bind_context(RequestContext("none")):
                await problem.response()(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer

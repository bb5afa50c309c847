"""HTTP below the application: uvicorn's answer to what is no HTTP, and to clients that never finish their headers.

BentoML starts uvicorn and leaves its protocol class to uvicorn's choice, `uvicorn.protocols.http.auto`; that is where
ours is put.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import uvicorn.protocols.http.auto as automatic

from service import metrics
from service.problems import MEDIA_TYPE, Problem

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Chosen
else:
    Chosen = automatic.AutoHTTPProtocol


class StrictProtocol(Chosen):
    """uvicorn's protocol, with problem documents for what never reaches the application, and a time for headers."""

    header_seconds = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a first request."""
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Go on waiting unless this was the end of a request's headers."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_headers()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(Problem("malformed_request", "this is no HTTP request; send HTTP/1.1"))

    def _wait_for_headers(self) -> None:
        if not self.transport.is_closing():
            self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(
                Problem(
                    "request_timeout", f"no whole request came within {self.header_seconds:g} seconds; send it again"
                )
            )

    def _refuse(self, problem: Problem) -> None:
        metrics.REJECTED.labels(problem.code).inc()
        document = problem.document
        body = document.model_dump_json().encode()
        head = (
            f"HTTP/1.1 {document.status} {document.title}\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def use_strict_protocol(header_seconds: float) -> None:
    """Have this process's uvicorn use it."""
    StrictProtocol.header_seconds = header_seconds
    automatic.AutoHTTPProtocol = StrictProtocol

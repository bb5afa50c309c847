"""HTTP below the application: uvicorn's answer to malformed requests and to clients that never finish their headers.

BentoML starts uvicorn and lets it choose its protocol class, from `uvicorn.protocols.http.auto`. We replace the class
there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import uvicorn.protocols.http.auto as automatic

from service.contract.problems import MEDIA_TYPE, Problem
from service.operations import metrics

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as UvicornProtocol
else:
    UvicornProtocol = automatic.AutoHTTPProtocol


class StrictProtocol(UvicornProtocol):
    """uvicorn's protocol with two additions: problem documents for malformed requests, and a time limit for headers."""

    header_seconds = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first request's headers."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Stop the timer once a request's headers are complete; start it again after the answer."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request."""
        self._refuse(Problem("malformed_request", "this is not an HTTP request; send HTTP/1.1"))

    def _start_timer(self) -> None:
        if not self.transport.is_closing():
            self._timer = self.loop.call_later(self.header_seconds, self._time_out)

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
                    f"no complete request arrived within {self.header_seconds:g} seconds; send it again",
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


def install_strict_protocol(header_seconds: float) -> None:
    """Make this process's uvicorn use `StrictProtocol`."""
    StrictProtocol.header_seconds = header_seconds
    automatic.AutoHTTPProtocol = StrictProtocol

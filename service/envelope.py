"""What is around every answer, whatever the route: the request's id, security headers, counts, a log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Final

from opentelemetry.trace import get_current_span
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.problems import internal_error
from service.record import RequestRecord, recording

REQUEST_ID: Final = "X-Request-ID"
LOG: Final = logging.getLogger("protoserve.access")

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_.:/+=-]{1,128}")
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Answers are data; the page brings its own policy.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Envelope:
    """ASGI middleware around the whole service. `routes` gives each endpoint's template, for metrics and logs."""

    def __init__(self, app: ASGIApp, routes: dict[object, str]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500
        started = False

        async def seal(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                # Now, for whoever made the span ends it with the last message.
                _trace(record)
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = record.id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        with recording(RequestRecord(_request_id(scope))) as record:
            metrics.IN_FLIGHT.inc()
            try:
                await self.app(scope, receive, seal)
            except Exception:
                # The outermost layer of ours: whatever comes here is a bug, and still gets a problem document.
                LOG.exception("the service failed to answer")
                record.code = "internal_error"
                if not started:
                    await internal_error().response()(scope, receive, seal)
            finally:
                metrics.IN_FLIGHT.dec()
                self._tell(scope, record, status, time.perf_counter() - start)

    def _tell(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        route = self.routes.get(scope.get("endpoint"), "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics.REQUESTS.labels(route, method, status).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        if record.code is not None:
            metrics.REJECTED.labels(record.code).inc()
        facts: dict[str, object] = {
            "request_id": record.id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "client": scope["client"][0] if scope.get("client") else None,
        }
        if route == "none":
            facts["path"] = str(scope["path"])[:200]
        for name in ("key", "code", "model"):
            if (value := getattr(record, name)) is not None:
                facts[name] = value
        if record.bytes:
            facts |= {"bytes": record.bytes, "images": record.images}
        if record.stages:
            facts["stages"] = {name: round(spent, 6) for name, spent in record.stages.items()}
        # Probes come every few seconds and say nothing while all is well.
        quiet = route in {"/livez", "/readyz", "/metrics"} and status < 400
        LOG.log(logging.DEBUG if quiet else logging.ERROR if status >= 500 else logging.INFO, "request", extra=facts)


def _trace(record: RequestRecord) -> None:
    span = get_current_span()
    if not span.is_recording():
        return
    span.set_attribute("protoserve.request_id", record.id)
    for name, spent in record.stages.items():
        span.set_attribute(f"protoserve.stage.{name}_seconds", spent)
    if record.model is not None:
        span.set_attribute("protoserve.model.version", record.model)
    if record.code is not None:
        span.set_attribute("protoserve.problem", record.code)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex

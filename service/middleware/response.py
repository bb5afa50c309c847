"""Middleware that adds to every response: request id, security headers, metrics, a log line, trace attributes."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Final

from opentelemetry.trace import get_current_span
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contract.problems import internal_error
from service.operations import metrics
from service.operations.request_context import RequestContext, bind_context

REQUEST_ID: Final = "X-Request-ID"

LOG: Final = logging.getLogger("protoserve.access")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES: Final = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
_VALID_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_.:/+=-]{1,128}")
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Forbids everything, because responses are data. The page sets its own policy.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class ResponseMiddleware:
    """ASGI middleware around the whole application.

    `routes` maps each endpoint to its route's template, which metrics and log lines use in place of the path.
    """

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

        async def send_with_headers(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                # Now, because the span ends with the last message.
                _set_span_attributes(context)
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = context.id
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        address = scope["client"][0] if scope.get("client") else ""
        with bind_context(RequestContext(_request_id(scope), address)) as context:
            context.open_inference = scope["path"] == "/v2" or scope["path"].startswith("/v2/")
            metrics.IN_FLIGHT.inc()
            try:
                await self.app(scope, receive, send_with_headers)
            except Exception:
                # Any exception that reaches this layer is a bug; the client still gets a problem document.
                LOG.exception("the service failed to answer")
                context.code = "internal_error"
                if not started:
                    await internal_error().response()(scope, receive, send_with_headers)
            finally:
                metrics.IN_FLIGHT.dec()
                self._record(scope, context, status, time.perf_counter() - start)

    def _record(self, scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
        route = self.routes.get(scope.get("endpoint"), "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics.REQUESTS.labels(route, method, status).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        if context.code is not None:
            metrics.REJECTED.labels(context.code).inc()
        fields: dict[str, object] = {
            "request_id": context.id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "client": context.address or None,
        }
        if route == "none":
            fields["path"] = str(scope["path"])[:200]
        for name in ("key", "code", "model"):
            if (value := getattr(context, name)) is not None:
                fields[name] = value
        if context.bytes:
            fields |= {"bytes": context.bytes, "images": context.images}
        if context.stages:
            fields["stages"] = {stage: round(duration, 6) for stage, duration in context.stages.items()}
        # Probes come every few seconds; log successful ones at debug level only.
        quiet = route in _PROBES and status < 400
        level = logging.DEBUG if quiet else logging.ERROR if status >= 500 else logging.INFO
        LOG.log(level, "request", extra=fields)


def _set_span_attributes(context: RequestContext) -> None:
    span = get_current_span()
    if not span.is_recording():
        return
    span.set_attribute("protoserve.request_id", context.id)
    for stage, seconds in context.stages.items():
        span.set_attribute(f"protoserve.stage.{stage}_seconds", seconds)
    if context.model is not None:
        span.set_attribute("protoserve.model.version", context.model)
    if context.code is not None:
        span.set_attribute("protoserve.problem", context.code)


def _request_id(scope: Scope) -> str:
    """Return the client's request id if it is safe to log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _VALID_REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex

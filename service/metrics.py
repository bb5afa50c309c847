"""What the service counts, for Prometheus; every label has few values, whatever clients send.

BentoML's own request metrics are switched off (see `service.service`): they carry the raw path as a label, so
that anybody could fill the server's memory and disk with made-up paths.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Stage = Literal["read", "decode", "infer", "encode"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

REQUESTS: Final = Counter(
    "protoserve_requests", "Requests answered, by route and status", ["route", "method", "status"]
)
REQUEST_SECONDS: Final = Histogram(
    "protoserve_request_seconds",
    "Time from a request's first byte to its answer's last",
    ["route"],
    buckets=_SECONDS,
)
STAGE_SECONDS: Final = Histogram(
    "protoserve_stage_seconds",
    "Time of one stage of a prediction, waiting for its turn included: read, decode, infer, encode",
    ["stage"],
    buckets=_SECONDS,
)
PREDICTIONS: Final = Counter("protoserve_predictions", "Pictures predicted, by the node at level 1", ["node"])
# All workers serve one model, so "max" shows it once; a Prometheus Info does not work with several processes.
MODEL: Final = Gauge(
    "protoserve_model_info",
    "1 for the model that answers",
    ["name", "version", "kind", "device"],
    multiprocess_mode="max",
)


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Count the time of one stage, also when it fails."""
    start = time.perf_counter()
    try:
        yield
    finally:
        STAGE_SECONDS.labels(name).observe(time.perf_counter() - start)


def latest() -> bytes:
    """All counts in Prometheus's text format, of all workers where there are several."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(PROCESS_REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class CountRequests:
    """ASGI middleware that counts requests by the route's template, never by the path that was sent."""

    def __init__(self, app: ASGIApp, routes: dict[object, str]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = self.routes.get(scope.get("endpoint"), "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            REQUESTS.labels(route, method, status).inc()
            REQUEST_SECONDS.labels(route).observe(time.perf_counter() - start)

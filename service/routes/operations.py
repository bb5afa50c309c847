"""Routes about the service itself: page, probes, metrics, OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from service.contract.openapi import openapi_document
from service.contract.problems import Problem
from service.contract.responses import NO_STORE, REVALIDATE
from service.model.holder import LoadedModel
from service.operations import metrics
from service.page.assembly import page
from service.settings import Settings


class OperationsRoutes:
    """Handlers of these routes. `current_model` returns the model for a new request, `is_stalled` whether predictions
    have come to a halt."""

    def __init__(
        self, settings: Settings, current_model: Callable[[], LoadedModel], is_stalled: Callable[[], bool]
    ) -> None:
        self.settings = settings
        self.current_model = current_model
        self.is_stalled = is_stalled

    async def page(self, request: Request) -> Response:
        """`GET /`: a page to try the model."""
        found = page()
        headers = {**REVALIDATE, "Content-Security-Policy": found.policy, "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return HTMLResponse(found.compressed, headers={**headers, "Content-Encoding": "gzip"})
        return HTMLResponse(found.html, headers=headers)

    async def live(self, request: Request) -> Response:
        """`GET /livez` (and `/healthz`): the process answers."""
        return PlainTextResponse("alive\n", headers=NO_STORE)

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: the model is loaded and warmed up, and predictions go on."""
        self.current_model()
        if self.is_stalled():
            raise Problem("not_ready", "predictions have come to a halt; restart this worker if it lasts")
        return PlainTextResponse("ready\n", headers=NO_STORE)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: metrics in Prometheus's text format."""
        content = await anyio.to_thread.run_sync(metrics.render_metrics)
        return Response(content, headers={**NO_STORE, "Content-Type": metrics.CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        settings = self.settings
        top_k = self.current_model().classifier.table.top_k
        content = _openapi(top_k, settings.max_images, settings.metrics_port is None, settings.feedback is not None)
        return Response(content, headers=REVALIDATE, media_type="application/json")


@lru_cache(maxsize=8)
def _openapi(top_k: int, images: int, metrics: bool, feedback: bool) -> bytes:
    """Build the document once for each model's limits; it takes milliseconds of the event loop."""
    return json.dumps(openapi_document(top_k, images, metrics=metrics, feedback=feedback)).encode()

"""The service's own routes, as an ASGI application over a model; nothing here knows BentoML."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from protoserve.errors import InputError
from service import metrics
from service.catalogue import REVALIDATE, Catalogue
from service.current import LOG, Current
from service.envelope import Envelope
from service.gates import CheckKeys, Cors
from service.openapi import openapi_document
from service.page import page
from service.predicting import FRESH, Predicting
from service.problems import Problem, answer_error
from service.settings import Settings


def create_app(settings: Settings, current: Callable[[], Current]) -> Starlette:
    """The application that answers every route of the HTTP contract.

    `current` gives the loaded model. It is asked on every request, in the event loop, so it must be quick. All errors
    are `application/problem+json`, unknown routes and methods included.
    """
    predicting, catalogue, itself = (
        Predicting(settings, current),
        Catalogue(settings, current),
        Itself(settings, current),
    )
    routes = [
        Route("/", itself.page),
        Route("/v1/predict", predicting.predict, methods=["POST"]),
        Route("/v1/predict/batch", predicting.predict_batch, methods=["POST"]),
        Route("/v1/model", catalogue.model),
        Route("/v1/taxonomy", catalogue.taxonomy),
        Route("/v1/prototypes", catalogue.prototypes),
        Route("/v1/prototypes/{id}", catalogue.prototype),
        Route("/v1/prototypes/{id}/image", catalogue.prototype_image),
        Route("/livez", itself.alive),
        Route("/healthz", itself.alive),
        Route("/readyz", itself.ready),
        Route("/metrics", itself.metrics),
        Route("/openapi.json", itself.openapi),
    ]
    templates: dict[object, str] = {route.endpoint: route.path for route in routes}
    templates[itself.alive] = "/livez"
    middleware = [Middleware(Envelope, routes=templates)]
    if settings.cors_origins:
        middleware.append(Middleware(Cors, origins=settings.cors_origins))
    if settings.api_keys:
        middleware.append(Middleware(CheckKeys, keys=settings.api_keys))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            HTTPException: answer_error,
            Problem: answer_error,
            InputError: answer_error,
            ClientDisconnect: _client_left,
        },
    )
    # A redirect to the path without its last slash would be an answer that is neither a document nor a
    # problem.
    app.router.redirect_slashes = False
    return app


class Itself:
    """The routes about the service itself: the page, probes, metrics, its OpenAPI document."""

    def __init__(self, settings: Settings, current: Callable[[], Current]) -> None:
        self.settings = settings
        self.current = current

    async def page(self, request: Request) -> Response:
        """`GET /`: a page to try the model."""
        html, policy = page()
        return HTMLResponse(html, headers={**REVALIDATE, "Content-Security-Policy": policy})

    async def alive(self, request: Request) -> Response:
        """`GET /livez` (and `/healthz`): the process answers."""
        return PlainTextResponse("alive\n", headers=FRESH)

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: the model is loaded, and has answered once on the device that was asked for."""
        self.current()
        return PlainTextResponse("ready\n", headers=FRESH)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: counts in Prometheus's text format."""
        content = await anyio.to_thread.run_sync(metrics.latest)
        return Response(content, headers={**FRESH, "Content-Type": metrics.CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        document = openapi_document(self.current().classifier.table.top_k, self.settings.max_images)
        return Response(json.dumps(document), headers=REVALIDATE, media_type="application/json")


async def _client_left(request: Request, error: Exception) -> Response:
    # Nobody reads this; without it the log would show every broken upload as a failure of the service.
    LOG.log(logging.DEBUG, "the client went away")
    return Response(status_code=499)

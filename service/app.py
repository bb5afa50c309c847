"""The service's own routes, as an ASGI application over a classifier; nothing here knows BentoML."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from protoserve.classifier import Classifier
from protoserve.errors import ImageError, InputError, nearest
from protoserve.evidence import checked_top_k
from protoserve.images import DEFAULT_LIMITS, FittedImage, Limits
from protoserve.schema import Prediction
from service import metrics
from service.documents import (
    PAGE,
    BatchDocument,
    BatchItem,
    PrototypePage,
    model_document,
    prototype_document,
    taxonomy_document,
)
from service.openapi import openapi_document
from service.page import page
from service.problems import Problem, answer_error, problem_of
from service.queries import NoQuery, PredictQuery, PrototypesQuery, read_query
from service.settings import Settings
from service.uploads import BINARY, form_images, read_body, single_image

P = ParamSpec("P")
T = TypeVar("T")

_FRESH: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_REVALIDATE: Final = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
_PICTURE_TYPES: Final = {".webp": "image/webp", ".png": "image/png"}


def create_app(settings: Settings, classifier: Callable[[], Classifier]) -> Starlette:
    """The application that answers every route of the HTTP contract.

    `classifier` gives the loaded model. It is asked on every request, in the event loop, so it must be quick
    once the model is loaded. All errors are `application/problem+json`, unknown routes and methods included.
    """
    endpoints = Endpoints(settings, classifier)
    routes = [
        Route("/", endpoints.page),
        Route("/v1/predict", endpoints.predict, methods=["POST"]),
        Route("/v1/predict/batch", endpoints.predict_batch, methods=["POST"]),
        Route("/v1/model", endpoints.model),
        Route("/v1/taxonomy", endpoints.taxonomy),
        Route("/v1/prototypes", endpoints.prototypes),
        Route("/v1/prototypes/{id}", endpoints.prototype),
        Route("/v1/prototypes/{id}/image", endpoints.prototype_image),
        Route("/livez", endpoints.alive),
        Route("/readyz", endpoints.ready),
        Route("/metrics", endpoints.metrics),
        Route("/openapi.json", endpoints.openapi),
    ]
    templates: dict[object, str] = {route.endpoint: route.path for route in routes}
    app = Starlette(
        routes=routes,
        middleware=[Middleware(metrics.CountRequests, routes=templates)],
        exception_handlers={
            HTTPException: answer_error,
            Problem: answer_error,
            InputError: answer_error,
            ClientDisconnect: _client_left,
            Exception: answer_error,
        },
    )
    # A redirect to the path without its last slash would be an answer that is neither a document nor a
    # problem.
    app.router.redirect_slashes = False
    return app


class Endpoints:
    """The routes' functions; they share the settings, the model, and the turns at decoding and inference."""

    def __init__(self, settings: Settings, classifier: Callable[[], Classifier]) -> None:
        self.settings = settings
        self.classifier = classifier
        self.limits = Limits(bytes=settings.max_bytes, pixels=settings.max_pixels, side=DEFAULT_LIMITS.side)
        self.decoding = Turns(os.cpu_count() or 1, settings.wait_seconds)
        # One inference uses every thread it may; a second beside it would only slow both down.
        self.inferring = Turns(1, settings.wait_seconds)

    # ---- predictions ---------------------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """`POST /v1/predict`: one picture, raw or as a form's only part."""
        query = self._predict_query(request)
        body = await self._read(request)
        image = await self.decoding.run(self._decode_single, request.headers.get("content-type", ""), body)
        [prediction] = await self.inferring.run(self._infer, [image], query)
        return await self.decoding.run(_encode, prediction)

    async def predict_batch(self, request: Request) -> Response:
        """`POST /v1/predict/batch`: a form of pictures; a prediction or a problem for each, in order."""
        query = self._predict_query(request)
        body = await self._read(request)
        parts = await self.decoding.run(
            form_images, request.headers.get("content-type", ""), body, most=self.settings.max_images
        )
        # One after the other, so that a batch takes no more turns at a time than a single picture does.
        images = [await self.decoding.run(self._decode_or_problem, part) for part in parts]
        good = [image for image in images if isinstance(image, FittedImage)]
        predictions = iter(await self.inferring.run(self._infer, good, query) if good else [])
        document = BatchDocument(
            results=[
                BatchItem(problem=image.document)
                if isinstance(image, Problem)
                else BatchItem(prediction=next(predictions))
                for image in images
            ]
        )
        return await self.decoding.run(_encode, document)

    def _predict_query(self, request: Request) -> PredictQuery:
        query = read_query(request, PredictQuery)
        if query.maps == "none" and query.top_k:
            raise Problem(
                "invalid_parameter",
                f"maps=none leaves the evidence out, but top_k={query.top_k} asks for it; give one of them",
            )
        if query.maps == "none":
            return query.model_copy(update={"top_k": 0})
        # Before the picture is read, for it may be large.
        checked_top_k(self.classifier().table, query.top_k)
        return query

    async def _read(self, request: Request) -> bytes:
        with metrics.stage("read"):
            return await read_body(request, limit=self.settings.max_bytes, seconds=self.settings.read_seconds)

    def _decode_single(self, content_type: str, body: bytes) -> FittedImage:
        with metrics.stage("decode"):
            return self._fit(single_image(content_type, body))

    def _decode_or_problem(self, data: bytes) -> FittedImage | Problem:
        with metrics.stage("decode"):
            try:
                return self._fit(data)
            except ImageError as error:
                return problem_of(error)

    def _fit(self, data: bytes) -> FittedImage:
        return self.classifier().fit(data, limits=self.limits)

    def _infer(self, images: list[FittedImage], query: PredictQuery) -> list[Prediction]:
        with metrics.stage("infer"):
            predictions = self.classifier().predict_fitted(
                images, top_k=query.top_k, alternatives=query.alternatives, maps=query.maps == "heat"
            )
        for prediction in predictions:
            metrics.PREDICTIONS.labels(prediction.levels[0].node).inc()
        return predictions

    # ---- the model -----------------------------------------------------------------------------------------

    async def model(self, request: Request) -> Response:
        """`GET /v1/model`."""
        read_query(request, NoQuery)
        classifier = self.classifier()
        return _json(model_document(classifier.bundle, classifier.engine.device, self.settings, self.limits.side))

    async def taxonomy(self, request: Request) -> Response:
        """`GET /v1/taxonomy`."""
        read_query(request, NoQuery)
        # Tens of thousands of nodes take a while to write down.
        return await self.decoding.run(lambda: _json(taxonomy_document(self.classifier().bundle)))

    async def prototypes(self, request: Request) -> Response:
        """`GET /v1/prototypes`: a page of them, of one node or of all."""
        query = read_query(request, PrototypesQuery)
        return await self.decoding.run(self._prototype_page, query)

    def _prototype_page(self, query: PrototypesQuery) -> Response:
        bundle = self.classifier().bundle
        names = bundle.taxonomy.index
        if query.node is not None and query.node not in names:
            hint = nearest(query.node[:200], names)
            raise Problem("unknown_node", f"the taxonomy has no node {query.node[:200]!r}, see /v1/taxonomy{hint}")
        start = int(query.cursor or 0)
        records = bundle.manifest.prototypes
        found = [
            number for number in range(start, len(records)) if query.node is None or records[number].child == query.node
        ]
        following = str(found[PAGE]) if len(found) > PAGE else None
        return _json(
            PrototypePage(prototypes=[prototype_document(bundle, number) for number in found[:PAGE]], cursor=following)
        )

    async def prototype(self, request: Request) -> Response:
        """`GET /v1/prototypes/{id}`."""
        read_query(request, NoQuery)
        return _json(prototype_document(self.classifier().bundle, self._prototype_id(request)))

    async def prototype_image(self, request: Request) -> Response:
        """`GET /v1/prototypes/{id}/image`: the training patch in its context."""
        read_query(request, NoQuery)
        bundle = self.classifier().bundle
        number = self._prototype_id(request)
        # Another model may answer under this address tomorrow, so a copy is good only for the version it
        # names.
        tag = f'"{bundle.manifest.version}-{number}"'
        headers = {**_REVALIDATE, "ETag": tag}
        known = request.headers.get("if-none-match", "")
        if tag in (part.strip().removeprefix("W/") for part in known.split(",")):
            return Response(status_code=304, headers=headers)
        picture = bundle.picture(number)
        return FileResponse(picture, headers=headers, media_type=_PICTURE_TYPES.get(picture.suffix, BINARY))

    def _prototype_id(self, request: Request) -> int:
        given = str(request.path_params["id"])
        count = len(self.classifier().bundle.manifest.prototypes)
        if not (given.isascii() and given.isdigit() and str(int(given[:9])) == given and int(given) < count):
            raise Problem(
                "unknown_prototype",
                f"there is no prototype {given[:80]!r}; this model's are 0 to {count - 1}",
            )
        return int(given)

    # ---- the service itself --------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """`GET /`: a page to try the model."""
        html, policy = page()
        return HTMLResponse(html, headers={**_REVALIDATE, "Content-Security-Policy": policy})

    async def alive(self, request: Request) -> Response:
        """`GET /livez`: the process answers."""
        return PlainTextResponse("alive\n", headers=_FRESH)

    async def ready(self, request: Request) -> Response:
        """`GET /readyz`: the model is loaded."""
        self.classifier()
        return PlainTextResponse("ready\n", headers=_FRESH)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: counts in Prometheus's text format."""
        classifier = self.classifier()
        manifest = classifier.bundle.manifest
        metrics.MODEL.labels(manifest.name, manifest.version, manifest.kind, classifier.engine.device).set(1)
        content = await anyio.to_thread.run_sync(metrics.latest)
        return Response(content, headers={**_FRESH, "Content-Type": metrics.CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return Response(json.dumps(openapi_document()), headers=_REVALIDATE, media_type="application/json")


class Turns:
    """At most `most` calls at a time in worker threads; the others wait for their turn, up to `seconds`."""

    def __init__(self, most: int, seconds: float) -> None:
        self.seconds = seconds
        self._turns = anyio.Semaphore(most)
        self._threads = anyio.CapacityLimiter(most)

    async def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call `function` in its turn; raises Problem `overloaded` when none comes in time."""
        try:
            with anyio.fail_after(self.seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Problem(
                "overloaded",
                f"the service had no turn for this request within {self.seconds:g} seconds; try again",
                {"Retry-After": "1"},
            ) from None
        try:
            return await anyio.to_thread.run_sync(partial(function, *arguments, **named), limiter=self._threads)
        finally:
            self._turns.release()


def _encode(document: BaseModel) -> Response:
    with metrics.stage("encode"):
        return Response(document.model_dump_json(), headers=_FRESH, media_type="application/json")


def _json(document: BaseModel) -> Response:
    return Response(document.model_dump_json(), headers=_REVALIDATE, media_type="application/json")


async def _client_left(request: Request, error: Exception) -> Response:
    # Nobody reads this; without it the log would show every broken upload as a failure of the service.
    return Response(status_code=400)

"""The routes that predict: bytes → picture → engine → evidence → JSON, never in the event loop.

Each step has threads of its own where cores are many or pictures go together (`Batcher`). Elsewhere a picture goes all
its way in one thread, without the changes of threads in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from protoserve.cores import usable_cores
from protoserve.errors import ImageError, ProtoServeError
from protoserve.images import FittedImage, Limits
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence import checked_top_k, predictions
from protoserve.schema import Prediction
from service import metrics
from service.batching import Batcher
from service.current import LOG, Current
from service.documents import BatchDocument, BatchItem
from service.problems import Problem, internal_error, problem_of
from service.queries import PredictQuery, read_query
from service.record import current_record, stage
from service.settings import Settings
from service.turns import Places, Turns
from service.uploads import form_images, read_body, single_image

FRESH: Final = {"Cache-Control": "no-store"}
BATCH_ON_A_GPU: Final = 16


@dataclass(frozen=True)
class _Answered:
    """The graph's answer for one picture, and the picture."""

    image: FittedImage
    outputs: Outputs


class Predicting:
    """These routes' functions, with the turns, places and lanes that all requests of a worker share."""

    def __init__(self, settings: Settings, current: Callable[[], Current]) -> None:
        self.settings = settings
        self.current = current
        self.limits = Limits(bytes=settings.max_bytes, pixels=settings.max_pixels, side=settings.max_side)
        self.memory = Places(settings.max_memory, "bytes of requests")
        self.pictures = Places(settings.max_queue, "pictures")
        self.decoding = Turns(usable_cores(), settings.wait_seconds)
        most = batch_of(settings, current().classifier)
        self.batcher = Batcher(settings.lanes, most, settings.wait_seconds)
        # Where decoding has no more threads than the lanes, and no picture waits for others, changing threads between
        # its steps gains nothing.
        self.in_one_go = most == 1 and settings.lanes * settings.workers >= usable_cores()

    async def predict(self, request: Request) -> Response:
        """`POST /v1/predict`: one picture, raw or as a form's only part."""
        current = self.current()
        query = _predict_query(request, current.classifier)
        kind = request.headers.get("content-type", "")
        with self.memory.hold() as take:
            body = await self._read(request, take)
            with self.pictures.hold(1):
                async with self._answering(request):
                    if self.in_one_go:
                        return await self._one_go(current, kind, body, query)
                    image = await self._decode(current.classifier, lambda: single_image(kind, body))
                    outputs = await self.batcher.run(current.classifier, image.array)
                    return await anyio.to_thread.run_sync(_one, current, _Answered(image, outputs), query)

    async def _one_go(self, current: Current, kind: str, body: bytes, query: PredictQuery) -> Response:
        """A picture's answer, all of it in the thread of one lane."""
        wanted = True

        def go() -> Response:
            classifier = current.classifier
            with stage("decode"):
                image = self._fit(classifier, single_image(kind, body))
            if not wanted:
                raise _Unwanted
            with stage("infer"):
                outputs = classifier.engine.run(image.array[None])
            if not wanted:
                raise _Unwanted
            return _one(current, _Answered(image, outputs), query)

        try:
            return await self.batcher.call(go)
        finally:
            wanted = False

    async def predict_batch(self, request: Request) -> Response:
        """`POST /v1/predict/batch`: a form of pictures; a prediction or a problem for each, in order."""
        current = self.current()
        query = _predict_query(request, current.classifier)
        kind = request.headers.get("content-type", "")
        with self.memory.hold() as take:
            body = await self._read(request, take)
            parts = await self.decoding.run(form_images, kind, body, most=self.settings.max_images)
            with self.pictures.hold(len(parts)):
                async with self._answering(request):
                    done = await self._each(current.classifier, parts)
                    return await anyio.to_thread.run_sync(_several, current, done, query)

    async def _each(self, classifier: Classifier, parts: list[bytes]) -> list[_Answered | Problem]:
        """What becomes of each picture of a batch; what is wrong with one leaves the others alone."""
        begun: list[Problem | asyncio.Task[_Answered | Problem]] = []
        try:
            for part in parts:
                # One after the other, so that a batch takes no more turns at a time than a single picture does; the
                # engine begins with the first meanwhile.
                try:
                    image = await self._decode(classifier, partial(bytes, part))
                except (ImageError, Problem) as error:
                    begun.append(problem_of(error))
                else:
                    begun.append(asyncio.create_task(self._settle(classifier, image)))
            return [item if isinstance(item, Problem) else await item for item in begun]
        finally:
            for item in begun:
                if not isinstance(item, Problem):
                    item.cancel()

    async def _settle(self, classifier: Classifier, image: FittedImage) -> _Answered | Problem:
        try:
            return _Answered(image, await self.batcher.run(classifier, image.array))
        except Problem as problem:
            return problem
        except ProtoServeError:
            LOG.exception("a picture of a batch could not be computed")
            return internal_error()

    @asynccontextmanager
    async def _answering(self, request: Request) -> AsyncIterator[None]:
        """Give the work up when its time is over (Problem `answer_timeout`) or its client has gone.

        What a thread has begun it ends, and that is at most one step of a picture; nothing further begins.
        """
        gone = False

        async def watch(scope: anyio.CancelScope) -> None:
            nonlocal gone
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone = True
            scope.cancel()

        with anyio.move_on_after(self.settings.answer_seconds) as scope:
            watcher = asyncio.create_task(watch(scope))
            try:
                yield
            finally:
                watcher.cancel()
        if gone:
            raise ClientDisconnect
        if scope.cancelled_caught:
            raise Problem(
                "answer_timeout",
                f"the answer took more than {self.settings.answer_seconds:g} seconds and was given up; try again later",
                {"Retry-After": "5"},
            )

    async def _read(self, request: Request, take: Callable[[int], None]) -> bytes:
        with stage("read"):
            body = await read_body(
                request, limit=self.settings.max_bytes, seconds=self.settings.read_seconds, take=take
            )
        metrics.BODY_BYTES.observe(len(body))
        current_record().bytes = len(body)
        return body

    async def _decode(self, classifier: Classifier, data: Callable[[], bytes]) -> FittedImage:
        with stage("decode"):
            return await self.decoding.run(lambda: self._fit(classifier, data()))

    def _fit(self, classifier: Classifier, data: bytes) -> FittedImage:
        image = classifier.fit(data, limits=self.limits, formats=self.settings.formats, draft=self.settings.jpeg_draft)
        metrics.IMAGE_PIXELS.observe(image.geometry.picture_width * image.geometry.picture_height)
        return image


def batch_of(settings: Settings, classifier: Classifier) -> int:
    """The most pictures in one inference. On a CPU 1: docs/decisions/0002-batching.md says why."""
    if settings.max_batch is not None:
        return settings.max_batch
    return BATCH_ON_A_GPU if classifier.engine.device == "cuda" else 1


def _predict_query(request: Request, classifier: Classifier) -> PredictQuery:
    query = read_query(request, PredictQuery)
    if query.maps == "none" and query.top_k:
        raise Problem(
            "invalid_parameter",
            f"maps=none leaves the evidence out, but top_k={query.top_k} asks for it; give one of them",
        )
    if query.maps == "none":
        return query.model_copy(update={"top_k": 0})
    # Before the picture is read, for it may be large.
    checked_top_k(classifier.table, query.top_k)
    return query


def _explain(current: Current, answered: _Answered, query: PredictQuery) -> Prediction:
    with stage("evidence"):
        [prediction] = predictions(
            answered.outputs,
            current.classifier.table,
            [answered.image.geometry],
            top_k=query.top_k,
            alternatives=query.alternatives,
            maps=query.maps == "heat",
        )
    current.counts.count(prediction, answered.outputs)
    record = current_record()
    record.model = current.version
    record.images += 1
    return prediction


class _Unwanted(Exception):
    """Nobody waits for the answer any more."""


def _one(current: Current, answered: _Answered, query: PredictQuery) -> Response:
    return _encode(_explain(current, answered, query))


def _several(current: Current, items: list[_Answered | Problem], query: PredictQuery) -> Response:
    results = []
    for item in items:
        if isinstance(item, Problem):
            metrics.REJECTED.labels(item.code).inc()
            results.append(BatchItem(problem=item.document))
        else:
            results.append(BatchItem(prediction=_explain(current, item, query)))
    return _encode(BatchDocument(results=results))


def _encode(document: BaseModel) -> Response:
    with stage("encode"):
        return Response(document.model_dump_json(), headers=FRESH, media_type="application/json")

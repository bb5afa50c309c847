"""Routes that predict: bytes → image → engine → evidence → JSON, all of it outside the event loop.

With many cores, or where images are batched (`Batcher`), each step has its own threads. Otherwise one thread runs all
steps of an image, which saves switches between threads.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread
from PIL import Image
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from protoserve.cores import usable_cores
from protoserve.errors import ImageError, OutOfMemoryError, ProtoServeError
from protoserve.images.fitting import FittedImage
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence import predictions
from protoserve.inference.identity import identified
from protoserve.inference.options import PredictOptions, ResolvedOptions
from protoserve.schema import Prediction
from service.contract.problems import Problem, as_problem, internal_error
from service.contract.queries import NoQuery, PredictQuery, parse_query
from service.contract.responses import NO_STORE, BatchDocument, BatchItem, prototype_href
from service.contract.uploads import form_images, read_body, single_image
from service.model.holder import LoadedModel
from service.operations import metrics
from service.operations.request_context import current_context, measure_stage
from service.scheduling.batching import Batcher
from service.scheduling.decoding import LOOP_BYTES, Decoder, Upload
from service.scheduling.limits import RETRY_SOON, CapacityBudget
from service.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

_LOG = logging.getLogger("protoserve.service")


@dataclass(frozen=True)
class Inference:
    """An image and the graph's outputs for it."""

    image: FittedImage
    outputs: Outputs


class PredictRoutes:
    """Handlers of these routes, with the threads, the queue and the budgets that all requests of a worker share.

    `current_model` returns the model for a new request.
    """

    def __init__(self, settings: Settings, current_model: Callable[[], LoadedModel]) -> None:
        self.settings = settings
        self.current_model = current_model
        self.body_budget = CapacityBudget(settings.max_memory, "bytes of requests")
        self.image_budget = CapacityBudget(settings.max_queue, "images")
        self.decoder = Decoder(settings)
        batch_limit = current_model().batch_limit
        self.batcher = Batcher(settings.lanes, batch_limit, settings.wait_seconds)
        # Separate threads for each step gain nothing where decoding has no more threads than inference and images
        # are not batched.
        self.single_thread = batch_limit == 1 and settings.lanes * settings.workers >= usable_cores()

    def is_stalled(self) -> bool:
        """Whether requests can't be answered in time: a step has outlasted every request's time limit, or all threads
        of a kind have been busy with one step each for longer than a request waits."""
        settings = self.settings
        for ages, threads in (
            (self.batcher.ages(), self.batcher.threads),
            (self.decoder.threads.ages(), self.decoder.threads.limit),
        ):
            if max(ages, default=0.0) > settings.answer_seconds:
                return True
            if len(ages) >= threads and min(ages) > settings.wait_seconds:
                return True
        return False

    async def predict(self, request: Request) -> Response:
        """`POST /v1/predict`: one image, as the raw body or as the only part of a form."""
        model = self.current_model()
        options = await _options(request, model.classifier)
        content_type = request.headers.get("content-type", "")
        with self.body_budget.reserve() as reserve_bytes:
            body = await self.read(request, reserve_bytes)
            with self.image_budget.reserve(1):
                async with self.deadline(request):
                    upload = await self._examine(model.classifier, body, partial(single_image, content_type, body))
                    if self.single_thread and upload.is_small:
                        return await self._predict_in_one_thread(model, upload, options)
                    image = await self._decode(model.classifier, upload)
                    outputs = await self.batcher.run(model.classifier, image.array, options)
                    return await in_thread(_predict_response, model, Inference(image, outputs), options)

    async def _predict_in_one_thread(self, model: LoadedModel, upload: Upload, options: ResolvedOptions) -> Response:
        """Run all steps of one image in one inference thread."""
        cancelled = False

        def run_steps() -> Response:
            classifier = model.classifier
            with measure_stage("decode"):
                image = self._fit(classifier, upload.data)
            if cancelled:
                raise _RequestCancelled
            with measure_stage("infer"):
                outputs = classifier.outputs(image.array[None], [options])
            if cancelled:
                raise _RequestCancelled
            return _predict_response(model, Inference(image, outputs), options)

        try:
            return await self.decoder.in_thread(upload, self.batcher.call, run_steps)
        finally:
            cancelled = True

    async def input(self, request: Request) -> Response:
        """`POST /v1/input`: the picture at model size, as the network gets it. Browsers can't draw every format."""
        parse_query(request, NoQuery)
        classifier = self.current_model().classifier
        content_type = request.headers.get("content-type", "")
        with self.body_budget.reserve() as reserve_bytes:
            body = await self.read(request, reserve_bytes)
            with self.image_budget.reserve(1):
                async with self.deadline(request):
                    upload = await self._examine(classifier, body, partial(single_image, content_type, body))
                    return await in_thread(_picture_response, await self._decode(classifier, upload))

    async def predict_batch(self, request: Request) -> Response:
        """`POST /v1/predict/batch`: a form of images; a prediction or a problem for each, in order."""
        model = self.current_model()
        options = await _options(request, model.classifier)
        content_type = request.headers.get("content-type", "")
        with self.body_budget.reserve() as reserve_bytes:
            body = await self.read(request, reserve_bytes)
            async with self.deadline(request):
                parts = await self.extract(
                    body, partial(form_images, content_type, body, limit=self.settings.max_images)
                )
                with self.image_budget.reserve(len(parts)):
                    items = await self.infer_parts(model.classifier, parts, options)
                    return await in_thread(_batch_response, model, items, options)

    async def infer_parts(
        self, classifier: Classifier, parts: Sequence[memoryview], options: ResolvedOptions
    ) -> list[Inference | Problem]:
        """Run each image of a batch; a problem with one does not affect the others."""
        items: list[Problem | asyncio.Task[Inference | Problem]] = []
        try:
            for part in parts:
                # One at a time, so that a batch uses no more decoding threads than a single image. The engine works
                # on the first images meanwhile.
                try:
                    image = await self._decode(classifier, await self._examine(classifier, part, partial(bytes, part)))
                except (ImageError, Problem) as error:
                    items.append(as_problem(error))
                except (MemoryError, OutOfMemoryError):
                    items.append(out_of_memory())
                else:
                    items.append(asyncio.create_task(self.infer_part(classifier, image, options)))
            return [item if isinstance(item, Problem) else await item for item in items]
        finally:
            for item in items:
                if not isinstance(item, Problem):
                    item.cancel()

    async def infer_part(
        self, classifier: Classifier, image: FittedImage, options: ResolvedOptions
    ) -> Inference | Problem:
        try:
            return Inference(image, await self.batcher.run(classifier, image.array, options))
        except Problem as problem:
            return problem
        except ProtoServeError:
            _LOG.exception("inference failed for an image of a batch")
            return internal_error()

    @asynccontextmanager
    async def deadline(self, request: Request) -> AsyncIterator[None]:
        """Cancel the work when the time is up (Problem `answer_timeout`) or the client disconnects.

        The request ends at once. A thread finishes the step that it has started, which is at most one step of one
        image; a decoding process is killed. Too little memory becomes Problem `overloaded`.
        """
        disconnected = False

        async def watch(scope: anyio.CancelScope) -> None:
            nonlocal disconnected
            while (await request.receive())["type"] != "http.disconnect":
                pass
            disconnected = True
            scope.cancel()

        with anyio.move_on_after(self.settings.answer_seconds) as scope:
            watcher = asyncio.create_task(watch(scope))
            try:
                yield
            except (MemoryError, OutOfMemoryError):
                _LOG.exception("too little memory for a request")
                raise out_of_memory() from None
            finally:
                watcher.cancel()
        if disconnected:
            raise ClientDisconnect
        if scope.cancelled_caught:
            raise Problem(
                "answer_timeout",
                f"the answer took more than {self.settings.answer_seconds:g} seconds and was cancelled; "
                "try again later",
                {"Retry-After": "5"},
            )

    async def read(self, request: Request, reserve_bytes: Callable[[int], None]) -> bytes:
        with measure_stage("read"):
            body = await read_body(
                request, limit=self.settings.max_bytes, seconds=self.settings.read_seconds, reserve=reserve_bytes
            )
        metrics.BODY_BYTES.observe(len(body))
        current_context().bytes = len(body)
        return body

    async def extract(self, body: bytes | memoryview, extract: Callable[[], T]) -> T:
        """Do what takes time in proportion to a body, in a thread if the body is large."""
        return extract() if len(body) <= LOOP_BYTES else await self.decoder.threads.run(extract)

    async def _examine(self, classifier: Classifier, body: bytes | memoryview, extract: Callable[[], bytes]) -> Upload:
        """Extract an image from a body and read its headers."""
        rule = classifier.bundle.input
        return await self.extract(body, lambda: self.decoder.examine(rule, extract()))

    async def _decode(self, classifier: Classifier, upload: Upload) -> FittedImage:
        with measure_stage("decode"):
            image = await self.decoder.fit(classifier.bundle.input, upload, partial(self._fit, classifier))
        if not upload.is_small:
            _count_pixels(image)
        return image

    def _fit(self, classifier: Classifier, data: bytes) -> FittedImage:
        image = classifier.fit(
            data, limits=self.decoder.limits, formats=self.settings.formats, draft=self.settings.jpeg_draft
        )
        _count_pixels(image)
        return image


def _count_pixels(image: FittedImage) -> None:
    metrics.IMAGE_PIXELS.observe(image.geometry.picture_width * image.geometry.picture_height)


async def in_thread(function: Callable[P, Response], *arguments: P.args, **named: P.kwargs) -> Response:
    """Call a function that takes some milliseconds. A caller that is cancelled leaves at once."""
    return await anyio.to_thread.run_sync(partial(function, *arguments, **named), abandon_on_cancel=True)


async def _options(request: Request, classifier: Classifier) -> ResolvedOptions:
    """Check the query before reading the body, which may be large."""
    return await resolved(parse_query(request, PredictQuery).options(), classifier)


async def resolved(options: PredictOptions, classifier: Classifier) -> ResolvedOptions:
    """Check options for a model.

    A restriction or a precision that was not asked for before needs a threshold of its own, from all calibration
    pictures. In a large taxonomy this takes time, so it happens in a thread.
    """
    resolve = partial(options.resolved, classifier.table)
    if options.sets_threshold:
        return await anyio.to_thread.run_sync(resolve, abandon_on_cancel=True)
    return resolve()


def explain(model: LoadedModel, inference: Inference, options: ResolvedOptions) -> Prediction:
    with measure_stage("evidence"):
        [prediction] = predictions(
            inference.outputs, model.classifier.table, [inference.image.geometry], options, href=prototype_href
        )
        prediction = identified(prediction, inference.image, options)
    model.counts.count(prediction, inference.outputs)
    context = current_context()
    context.model = model.version
    context.images += 1
    return prediction


def out_of_memory() -> Problem:
    """Build the problem for a request that this machine has too little memory for now."""
    return Problem("overloaded", "the service has too little free memory for this image; try again later", RETRY_SOON)


class _RequestCancelled(Exception):
    """Ends the work of a request whose client has disconnected or whose time is up."""


def _predict_response(model: LoadedModel, inference: Inference, options: ResolvedOptions) -> Response:
    return _encode(explain(model, inference, options))


def _batch_response(model: LoadedModel, items: list[Inference | Problem], options: ResolvedOptions) -> Response:
    results = []
    for item in items:
        if isinstance(item, Problem):
            metrics.REJECTED.labels(item.code).inc()
            results.append(BatchItem(problem=item.document))
        else:
            results.append(BatchItem(prediction=explain(model, item, options)))
    return _encode(BatchDocument(results=results))


def _picture_response(image: FittedImage) -> Response:
    content = io.BytesIO()
    Image.fromarray(image.array).save(content, "PNG")
    return Response(content.getvalue(), headers=NO_STORE, media_type="image/png")


def _encode(document: BaseModel) -> Response:
    with measure_stage("encode"):
        return Response(document.model_dump_json(), headers=NO_STORE, media_type="application/json")

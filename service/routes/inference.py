"""Routes of the Open Inference Protocol, beside /v1: the same model, limits, queue and deadlines in KServe's words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from protoserve import __version__
from protoserve.errors import ImageError, nearest
from protoserve.inference.classifier import Classifier
from protoserve.inference.evidence import under_options
from protoserve.inference.options import ResolvedOptions
from protoserve.schema import Prediction
from service.contract.inference_documents import (
    LiveDocument,
    ModelReadyDocument,
    ReadyDocument,
    ServerDocument,
    metadata,
)
from service.contract.problems import Problem
from service.contract.queries import NoQuery, parse_query
from service.contract.responses import NO_STORE
from service.contract.tensors import HEADER, InferRequest, Tensor, TensorLimits, infer_response, parse_infer
from service.model.holder import LoadedModel
from service.routes.predict import Inference, PredictRoutes, explain, in_thread, resolved


class InferenceRoutes:
    """Handlers of these routes; `predict` has the threads, the queue and the budgets that they share with /v1."""

    def __init__(self, predict: PredictRoutes, current_model: Callable[[], LoadedModel]) -> None:
        self.predict = predict
        self.current_model = current_model
        settings = predict.settings
        self.limits = TensorLimits(settings.max_images, settings.max_pixels, settings.max_side)

    async def server(self, request: Request) -> Response:
        """`GET /v2`: the server's name, version and extensions."""
        parse_query(request, NoQuery)
        return _json(ServerDocument(name="protoserve", version=__version__, extensions=["binary_tensor_data"]))

    async def live(self, request: Request) -> Response:
        """`GET /v2/health/live`: the process answers."""
        return _json(LiveDocument(live=True))

    async def ready(self, request: Request) -> Response:
        """`GET /v2/health/ready`: the model is loaded and warmed up, and predictions go on."""
        self._check_ready()
        return _json(ReadyDocument(ready=True))

    async def model(self, request: Request) -> Response:
        """`GET /v2/models/NAME[/versions/VERSION]`: the model's inputs and outputs."""
        parse_query(request, NoQuery)
        bundle = self._named(request).classifier.bundle
        return _json(metadata(bundle.name, bundle.version, bundle.taxonomy.depth, len(bundle.taxonomy.nodes)))

    async def model_ready(self, request: Request) -> Response:
        """`GET /v2/models/NAME[/versions/VERSION]/ready`: the model can answer."""
        name = self._named(request).classifier.bundle.name
        self._check_ready()
        return _json(ModelReadyDocument(name=name, ready=True))

    async def infer(self, request: Request) -> Response:
        """`POST /v2/models/NAME[/versions/VERSION]/infer`: pictures as a tensor, predictions as tensors."""
        parse_query(request, NoQuery)
        model = self._named(request)
        classifier, predict = model.classifier, self.predict
        with predict.body_budget.reserve() as reserve_bytes:
            body = await predict.read(request, reserve_bytes)
            async with predict.deadline(request):
                parse = partial(parse_infer, body, request.headers.get(HEADER), self.limits)
                asked = await predict.extract(body, parse)
                options = await resolved(asked.query.options(), classifier)
                wanted = {name for name, _ in asked.outputs}
                options = replace(options, all_nodes="node_probability" in wanted)
                with predict.image_budget.reserve(asked.count):
                    if asked.pixels is None:
                        items = await predict.infer_parts(classifier, asked.images, options)
                    else:
                        items = await self._infer_pixels(classifier, asked.pixels, options)
                    # The protocol has no problems of single pictures.
                    for number, item in enumerate(items):
                        if isinstance(item, Problem):
                            raise Problem(item.code, f"picture {number}: {item}", item.headers)
                    inferences = [item for item in items if isinstance(item, Inference)]
                    return await in_thread(_response, model, asked, inferences, options)

    async def _infer_pixels(
        self, classifier: Classifier, pixels: NDArray[np.uint8], options: ResolvedOptions
    ) -> list[Inference | Problem]:
        items: list[asyncio.Task[Inference | Problem]] = []
        try:
            decoder = self.predict.decoder
            for number, picture in enumerate(pixels):
                try:
                    image = await decoder.threads.run(classifier.fit, picture, limits=decoder.limits)
                except ImageError as error:
                    raise Problem(error.code, f"picture {number}: {error}") from error
                items.append(asyncio.create_task(self.predict.infer_part(classifier, image, options)))
            return [await item for item in items]
        finally:
            for item in items:
                item.cancel()

    def _check_ready(self) -> None:
        self.current_model()
        if self.predict.is_stalled():
            raise Problem("not_ready", "predictions have come to a halt; restart this worker if it lasts")

    def _named(self, request: Request) -> LoadedModel:
        """Return the current model; raises Problem `unknown_model` if the path names another one or its version."""
        model = self.current_model()
        bundle, name = model.classifier.bundle, str(request.path_params["name"])
        if name != bundle.name:
            hint = nearest(name[:80], [bundle.name])
            raise Problem("unknown_model", f"no model {name[:80]!r}{hint}; this service has {bundle.name!r}")
        version = request.path_params.get("version", bundle.version)
        if version not in {bundle.version, bundle.version.removeprefix("sha256:")}:
            raise Problem(
                "unknown_model",
                f"{bundle.name!r} has no version {str(version)[:80]!r}, only {bundle.version}; leave versions out of "
                "the path for the current one",
            )
        return model


def _json(document: BaseModel) -> Response:
    return Response(document.model_dump_json(), headers=NO_STORE, media_type="application/json")


def _response(
    model: LoadedModel, asked: InferRequest, inferences: list[Inference], options: ResolvedOptions
) -> Response:
    bundle, table = model.classifier.bundle, model.classifier.table
    made = [explain(model, inference, options) for inference in inferences]
    depth = bundle.taxonomy.depth

    def values(name: str) -> NDArray[Any]:
        if name == "path":
            return _texts([[level.node for level in one.levels] for one in made], depth)
        if name == "probability":
            return np.array([_padded(one, depth) for one in made], dtype=np.float32)
        if name == "node_probability":
            rows = []
            for inference in inferences:
                plain, restricted = under_options(inference.outputs, table, options)
                rows.append((plain if restricted is None else restricted.outputs).log_probability)
            return np.exp(np.minimum(np.concatenate(rows), 0.0))
        return np.array([one.model_dump_json() for one in made], dtype=object)

    identity = {"model_name": bundle.name, "model_version": bundle.version}
    if asked.id is not None:
        identity["id"] = asked.id
    return infer_response(identity, [Tensor(name, values(name), binary) for name, binary in asked.outputs])


def _texts(rows: list[list[str]], width: int) -> NDArray[Any]:
    return np.array([row + [""] * (width - len(row)) for row in rows], dtype=object)


def _padded(prediction: Prediction, depth: int) -> list[float]:
    found = [level.probability for level in prediction.levels]
    return found + [0.0] * (depth - len(found))

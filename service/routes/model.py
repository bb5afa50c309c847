"""Routes that describe the model: its properties, its taxonomy, its prototypes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from protoserve.bundle.ensemble import Model
from protoserve.errors import BundleError, nearest
from protoserve.inference.opened_pictures import read_patch
from service.contract.problems import Problem
from service.contract.queries import NoQuery, PrototypeImageQuery, PrototypesQuery, parse_query
from service.contract.responses import (
    PAGE_SIZE,
    REVALIDATE,
    PrototypePage,
    model_document,
    prototype_document,
    taxonomy_document,
)
from service.contract.uploads import BINARY
from service.model.holder import LoadedModel
from service.scheduling.limits import ConcurrencyLimiter
from service.settings import Settings

_LOG: Final = logging.getLogger("protoserve.service")
_THREADS: Final = 2
_MEDIA_TYPES: Final = {".webp": "image/webp", ".png": "image/png"}


class ModelRoutes:
    """Handlers of these routes. `current_model` returns the model for a new request."""

    def __init__(self, settings: Settings, current_model: Callable[[], LoadedModel]) -> None:
        self.settings = settings
        self.current_model = current_model
        # Reads files and writes long documents. Separate from predictions, so that neither delays the other.
        self.limiter = ConcurrencyLimiter(_THREADS, settings.wait_seconds)

    async def model(self, request: Request) -> Response:
        """`GET /v1/model`."""
        parse_query(request, NoQuery)
        classifier = self.current_model().classifier
        graph: Literal["routed", "full"] = "full" if classifier.quick is None else "routed"
        return _json_response(model_document(classifier.bundle, classifier.engine.device, self.settings, graph))

    async def taxonomy(self, request: Request) -> Response:
        """`GET /v1/taxonomy`."""
        parse_query(request, NoQuery)
        bundle = self.current_model().classifier.bundle
        # In a thread, because a taxonomy may have tens of thousands of nodes.
        return await self.limiter.run(lambda: _json_response(taxonomy_document(bundle)))

    async def prototypes(self, request: Request) -> Response:
        """`GET /v1/prototypes`: one page of prototypes, of one node or of all."""
        query = parse_query(request, PrototypesQuery)
        return await self.limiter.run(_prototype_page, self.current_model().classifier.bundle, query)

    async def prototype(self, request: Request) -> Response:
        """`GET /v1/prototypes/{id}`."""
        parse_query(request, NoQuery)
        bundle = self.current_model().classifier.bundle
        return _json_response(prototype_document(bundle, _prototype_id(request, bundle)))

    async def prototype_image(self, request: Request) -> Response:
        """`GET /v1/prototypes/{id}/image`: the training patch in its context, or the patch alone."""
        view = parse_query(request, PrototypeImageQuery).view
        bundle = self.current_model().classifier.bundle
        prototype = _prototype_id(request, bundle)
        suffix = bundle.picture(prototype).suffix
        tag = f"{bundle.version}-{prototype}"
        # An autoencoder's prototype is a whole picture.
        if view == "patch" and bundle.kind != "autoencoder":
            return await self._picture(request, f"{tag}-patch", ".webp", lambda: read_patch(bundle, prototype))
        return await self._picture(request, tag, suffix, lambda: bundle.read_picture(prototype))

    async def sample(self, request: Request) -> Response:
        """`GET /v1/samples/{id}`: a picture to try the model on."""
        parse_query(request, NoQuery)
        bundle = self.current_model().classifier.bundle
        sample = _number(request, bundle.samples, "sample")
        tag = f"{bundle.version}-sample-{sample}"
        return await self._picture(request, tag, ".png", lambda: bundle.read_sample(sample))

    async def _picture(self, request: Request, tag: str, suffix: str, read: Callable[[], bytes]) -> Response:
        """Send a picture of the bundle. Its tag contains the model's version, because another model may use the same
        URL later."""
        headers = {**REVALIDATE, "ETag": f'"{tag}"'}
        cached = request.headers.get("if-none-match", "")
        if f'"{tag}"' in (part.strip().removeprefix("W/") for part in cached.split(",")):
            return Response(status_code=304, headers=headers)
        try:
            content = await self.limiter.run(read)
        except BundleError as error:
            _LOG.warning("a picture of the bundle cannot be served: %s", error)
            raise Problem(
                "not_ready",
                "the bundle's folder has changed since the model was loaded: the picture is no longer the one that was "
                "verified; try again once the service has loaded the new bundle",
                {"Retry-After": "1"},
            ) from None
        return Response(content, headers=headers, media_type=_MEDIA_TYPES.get(suffix, BINARY))


def _json_response(document: BaseModel) -> Response:
    return Response(document.model_dump_json(), headers=REVALIDATE, media_type="application/json")


def _prototype_page(bundle: Model, query: PrototypesQuery) -> Response:
    names = bundle.taxonomy.index
    if query.node is not None and query.node not in names:
        hint = nearest(query.node[:200], names)
        raise Problem("unknown_node", f"the taxonomy has no node {query.node[:200]!r}; /v1/taxonomy lists them{hint}")
    start = int(query.cursor or 0)
    records = bundle.prototypes
    ids = [
        prototype
        for prototype in range(start, len(records))
        if query.node is None or records[prototype].child == query.node
    ]
    cursor = str(ids[PAGE_SIZE]) if len(ids) > PAGE_SIZE else None
    return _json_response(
        PrototypePage(
            prototypes=[prototype_document(bundle, prototype) for prototype in ids[:PAGE_SIZE]], cursor=cursor
        )
    )


def _prototype_id(request: Request, bundle: Model) -> int:
    return _number(request, len(bundle.prototypes), "prototype")


def _number(request: Request, count: int, kind: Literal["prototype", "sample"]) -> int:
    """Read the id of the path; raises Problem `unknown_prototype` or `unknown_sample`."""
    text = str(request.path_params["id"])
    if not (text.isascii() and text.isdigit() and str(int(text[:9])) == text and int(text) < count):
        known = f"ids are 0 to {count - 1}" if count else "the model has none"
        raise Problem(f"unknown_{kind}", f"no {kind} has the id {text[:80]!r}; {known}")
    return int(text)

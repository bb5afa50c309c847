"""The routes that describe the model: what it is, its class tree, its prototypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from protoserve.bundle.ensemble import Model
from protoserve.errors import nearest
from service.current import Current
from service.documents import PAGE, PrototypePage, model_document, prototype_document, taxonomy_document
from service.problems import Problem
from service.queries import NoQuery, PrototypesQuery, read_query
from service.settings import Settings
from service.turns import Turns
from service.uploads import BINARY

REVALIDATE: Final = {"Cache-Control": "no-cache"}
_PICTURE_TYPES: Final = {".webp": "image/webp", ".png": "image/png"}


class Catalogue:
    """These routes' functions; `current` gives the model."""

    def __init__(self, settings: Settings, current: Callable[[], Current]) -> None:
        self.settings = settings
        self.current = current
        # For reading files and writing long documents; apart from predictions, so that neither waits for the other.
        self.turns = Turns(2, settings.wait_seconds)

    async def model(self, request: Request) -> Response:
        """`GET /v1/model`."""
        read_query(request, NoQuery)
        classifier = self.current().classifier
        return json_response(model_document(classifier.bundle, classifier.engine.device, self.settings))

    async def taxonomy(self, request: Request) -> Response:
        """`GET /v1/taxonomy`."""
        read_query(request, NoQuery)
        bundle = self.current().classifier.bundle
        # Tens of thousands of nodes take a while to write down.
        return await self.turns.run(lambda: json_response(taxonomy_document(bundle)))

    async def prototypes(self, request: Request) -> Response:
        """`GET /v1/prototypes`: a page of them, of one node or of all."""
        query = read_query(request, PrototypesQuery)
        return await self.turns.run(_prototype_page, self.current().classifier.bundle, query)

    async def prototype(self, request: Request) -> Response:
        """`GET /v1/prototypes/{id}`."""
        read_query(request, NoQuery)
        bundle = self.current().classifier.bundle
        return json_response(prototype_document(bundle, _prototype_id(request, bundle)))

    async def prototype_image(self, request: Request) -> Response:
        """`GET /v1/prototypes/{id}/image`: the training patch in its context."""
        read_query(request, NoQuery)
        bundle = self.current().classifier.bundle
        number = _prototype_id(request, bundle)
        # Another model may answer under this address tomorrow, so a copy is good only for the version it
        # names.
        tag = f'"{bundle.manifest.version}-{number}"'
        headers = {**REVALIDATE, "ETag": tag}
        known = request.headers.get("if-none-match", "")
        if tag in (part.strip().removeprefix("W/") for part in known.split(",")):
            return Response(status_code=304, headers=headers)
        picture = bundle.picture(number)
        try:
            content = await self.turns.run(picture.read_bytes)
        except FileNotFoundError:
            raise Problem(
                "not_ready",
                f"the picture of prototype {number} is gone; the model is being changed, so try again",
                {"Retry-After": "1"},
            ) from None
        return Response(content, headers=headers, media_type=_PICTURE_TYPES.get(picture.suffix, BINARY))


def json_response(document: BaseModel) -> Response:
    """A document that a client may keep if it asks again whether it is still good."""
    return Response(document.model_dump_json(), headers=REVALIDATE, media_type="application/json")


def _prototype_page(bundle: Model, query: PrototypesQuery) -> Response:
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
    return json_response(
        PrototypePage(prototypes=[prototype_document(bundle, number) for number in found[:PAGE]], cursor=following)
    )


def _prototype_id(request: Request, bundle: Model) -> int:
    given = str(request.path_params["id"])
    count = len(bundle.manifest.prototypes)
    if not (given.isascii() and given.isdigit() and str(int(given[:9])) == given and int(given) < count):
        raise Problem(
            "unknown_prototype",
            f"there is no prototype {given[:80]!r}; this model's are 0 to {count - 1}",
        )
    return int(given)

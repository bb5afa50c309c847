"""Who may ask: the check of API keys, and pages of other origins (CORS), as ASGI middleware."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import Key, find_key, presented_key
from service.problems import Problem
from service.record import current_record

# Without a key one may see that the service lives, and the page and document that say how to ask it.
OPEN: Final = frozenset({"/", "/livez", "/readyz", "/healthz", "/openapi.json"})


class CheckKeys:
    """Refuses requests without one of `keys`."""

    def __init__(self, app: ASGIApp, keys: tuple[Key, ...]) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            given = presented_key(scope["headers"])
            key = find_key(given, self.keys) if given is not None else None
            if key is None:
                await _refusal(given).response()(scope, receive, send)
                return
            current_record().key = key.name
        await self.app(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's CORS, whose refusals are problem documents here."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-API-Key", "X-Request-ID"),
            expose_headers=("Retry-After", "X-Request-ID"),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """What a browser is told that asks beforehand."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < HTTPStatus.BAD_REQUEST:
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=_without_body(answer))
        origin = request_headers.get("origin", "")[:200]
        return Problem(
            "origin_not_allowed",
            f"pages of {origin!r} may not call this service in this way; PROTOSERVE_CORS_ORIGINS says which may, with "
            "GET and POST",
        ).response()


def _without_body(answer: Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}


def _refusal(given: str | None) -> Problem:
    what = "this service asks for a key" if given is None else "this key is not known here"
    return Problem(
        "invalid_key",
        f"{what}; send yours as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
        {"WWW-Authenticate": 'Bearer realm="protoserve"'},
    )

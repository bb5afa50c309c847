"""Middleware for pages of other origins (CORS)."""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.contract.problems import Problem


class CorsMiddleware(CORSMiddleware):
    """Starlette's CORS middleware, with problem documents for refusals."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("Authorization", "Content-Type", "X-API-Key", "X-Request-ID"),
            expose_headers=("Retry-After", "X-Request-ID"),
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a browser's preflight request: 204 if it may send the request, else a problem."""
        response = super().preflight_response(request_headers)
        if response.status_code < HTTPStatus.BAD_REQUEST:
            headers = {
                name: value
                for name, value in response.headers.items()
                if name not in ("content-length", "content-type")
            }
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
        origin = request_headers.get("origin", "")[:200]
        return Problem(
            "origin_not_allowed",
            f"pages of {origin!r} may not send this request; PROTOSERVE_CORS_ORIGINS lists the origins that may, "
            "with GET and POST",
        ).response()

"""Errors over HTTP: RFC 9457 problem documents, one shape for every route and status."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Literal

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from protoserve.errors import ImageError, InputError
from protoserve.schema import Contract
from service.record import current_record

MEDIA_TYPE: Final = "application/problem+json"

# A client may rely on these; a code is never renamed or given another status.
STATUS_OF: Final[Mapping[str, int]] = {
    "answer_timeout": 504,
    "broken_image": 422,
    "image_too_large": 413,
    "internal_error": 500,
    "invalid_key": 401,
    "invalid_multipart": 400,
    "invalid_parameter": 400,
    "malformed_request": 400,
    "method_not_allowed": 405,
    "missing_image": 400,
    "not_found": 404,
    "not_ready": 503,
    "origin_not_allowed": 403,
    "overloaded": 503,
    "request_timeout": 408,
    "request_too_large": 413,
    "too_many_images": 413,
    "unexpected_part": 400,
    "unknown_node": 404,
    "unknown_parameter": 400,
    "unknown_prototype": 404,
    "unsupported_encoding": 415,
    "unsupported_image": 415,
    "unsupported_media_type": 415,
}


class ProblemDocument(Contract):
    """An RFC 9457 problem. `code` is stable and says which it is; `detail` names the value and the cure."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="the status in words")
    status: int = Field(ge=400, le=599)
    detail: str
    code: str = Field(description="stable, for programs", json_schema_extra={"enum": [*sorted(STATUS_OF)]})


class Problem(Exception):
    """A request that gets a problem document; the status follows from `code`."""

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.headers = dict(headers or {})

    @property
    def document(self) -> ProblemDocument:
        """The document to send."""
        status = STATUS_OF[self.code]
        return ProblemDocument(title=HTTPStatus(status).phrase, status=status, detail=str(self), code=self.code)

    def response(self) -> Response:
        """The answer to the current request: the document, its status and headers."""
        current_record().code = self.code
        document = self.document
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **self.headers}
        return Response(document.model_dump_json(), document.status, headers, MEDIA_TYPE)


def problem_of(error: Problem | ImageError | InputError) -> Problem:
    """The problem that tells of an error in what the client sent."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ImageError):
        return Problem(error.code, str(error))
    return Problem("invalid_parameter", str(error))


def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for all errors that this module knows."""
    if isinstance(error, Problem | InputError):
        return problem_of(error).response()
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _answer_method(request, error)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        return Problem(
            "not_found", f"there is no {request.url.path!r} here; /openapi.json lists what there is"
        ).response()
    if isinstance(error, HTTPException):
        # Such as a header that Starlette can't read; it raises few of these, and none that says more.
        return Problem("malformed_request", "the request can't be understood; send it as HTTP says").response()
    raise error


def internal_error() -> Problem:
    """The problem of a bug or a broken device; what happened is for the log alone."""
    return Problem("internal_error", "the service failed to answer, which is its fault; its log says why")


def _answer_method(request: Request, error: HTTPException) -> Response:
    given = {name.strip() for name in (error.headers or {}).get("Allow", "").split(",")}
    allowed = ", ".join(sorted({*given, "OPTIONS"} - {""}))
    if request.method == "OPTIONS":
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": allowed})
    return Problem(
        "method_not_allowed",
        f"{request.method} is not for {request.url.path!r}; use {allowed}",
        {"Allow": allowed},
    ).response()

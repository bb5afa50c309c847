"""Errors over HTTP: RFC 9457 problem documents, the same shape for every route and status."""

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
from service.operations.request_context import current_context

MEDIA_TYPE: Final = "application/problem+json"

# Clients rely on these: never rename a code and never give it another status.
STATUS_OF: Final[Mapping[str, int]] = {
    "answer_timeout": 504,
    "broken_image": 422,
    "headers_too_large": 431,
    "image_too_large": 413,
    "internal_error": 500,
    "invalid_feedback": 400,
    "invalid_key": 401,
    "invalid_multipart": 400,
    "invalid_parameter": 400,
    "invalid_tensor": 400,
    "malformed_request": 400,
    "method_not_allowed": 405,
    "missing_image": 400,
    "not_found": 404,
    "not_ready": 503,
    "origin_not_allowed": 403,
    "overloaded": 503,
    "request_timeout": 408,
    "request_too_large": 413,
    "storage_full": 507,
    "storage_unavailable": 503,
    "too_many_images": 413,
    "too_many_requests": 429,
    "unexpected_part": 400,
    "unknown_model": 404,
    "unknown_node": 404,
    "unknown_parameter": 400,
    "unknown_prototype": 404,
    "unknown_sample": 404,
    "unsupported_encoding": 415,
    "unsupported_image": 415,
    "unsupported_media_type": 415,
}


class ProblemDocument(Contract):
    """An RFC 9457 problem. `code` is stable and names the kind of problem; `detail` names the value and the cure."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(description="the status in words")
    status: int = Field(ge=400, le=599)
    detail: str
    code: str = Field(description="stable, for programs", json_schema_extra={"enum": [*sorted(STATUS_OF)]})


class InferenceProblemDocument(ProblemDocument):
    """A problem of the Open Inference Protocol's routes: `error` repeats the `detail`, for clients of that protocol."""

    error: str


class Problem(Exception):
    """A request that is answered with a problem document; `code` determines the status."""

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
        """Build the response to the current request, and note the code in its context."""
        current_context().code = self.code
        document = self.document
        if current_context().open_inference:
            document = InferenceProblemDocument(**document.model_dump(), error=document.detail)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **self.headers}
        return Response(document.model_dump_json(), document.status, headers, MEDIA_TYPE)


def as_problem(error: Problem | ImageError | InputError) -> Problem:
    """Convert an error in the client's input to a problem."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ImageError):
        return Problem(error.code, str(error))
    return Problem("invalid_parameter", str(error))


def handle_error(request: Request, error: Exception) -> Response:
    """Answer Problem, InputError and Starlette's HTTPException; raise any other error again.

    It is Starlette's exception handler for these types.
    """
    if isinstance(error, Problem | InputError):
        return as_problem(error).response()
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _handle_method(request, error)
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        return Problem(
            "not_found", f"this service has no {request.url.path!r}; /openapi.json lists its routes"
        ).response()
    if isinstance(error, HTTPException):
        # Starlette raises few others, such as for a header that it cannot parse, and none says more.
        return Problem("malformed_request", "the service cannot parse this request; send valid HTTP").response()
    raise error


def internal_error() -> Problem:
    """Build the problem for a bug or a broken device. Only the log has the details."""
    return Problem("internal_error", "the service failed, not your request; its log gives the reason")


def _handle_method(request: Request, error: HTTPException) -> Response:
    methods = {name.strip() for name in (error.headers or {}).get("Allow", "").split(",")}
    allowed = ", ".join(sorted({*methods, "OPTIONS"} - {""}))
    if request.method == "OPTIONS":
        return Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": allowed})
    return Problem(
        "method_not_allowed",
        f"{request.url.path!r} does not take {request.method}; use {allowed}",
        {"Allow": allowed},
    ).response()

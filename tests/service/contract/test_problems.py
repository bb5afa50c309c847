"""Problem documents and the errors that become them."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from protoserve.errors import ImageError, InputError
from service.contract.problems import STATUS_OF, Problem, as_problem, handle_error, internal_error
from service.operations.request_context import RequestContext, bind_context

REQUEST = Request({"type": "http", "method": "GET", "path": "/nope", "headers": [], "server": ("host", 80)})


@pytest.mark.parametrize("code", sorted(STATUS_OF))
def test_the_response_has_the_status_of_its_code(code: str) -> None:
    with bind_context(RequestContext("r-1")) as context:
        response = Problem(code, "because", {"Retry-After": "1"}).response()
    status = STATUS_OF[code]
    assert (response.status_code, response.media_type) == (status, "application/problem+json")
    assert json.loads(bytes(response.body)) == {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": "because",
        "code": code,
    }
    assert (response.headers["retry-after"], response.headers["cache-control"]) == ("1", "no-store")
    assert context.code == code


def test_errors_in_the_input_keep_their_message() -> None:
    problem = Problem("overloaded", "later")
    assert as_problem(problem) is problem
    image = as_problem(ImageError("no pixels", "broken_image"))
    assert (image.code, str(image)) == ("broken_image", "no pixels")
    parameter = as_problem(InputError("top_k must be less"))
    assert (parameter.code, str(parameter)) == ("invalid_parameter", "top_k must be less")


@pytest.mark.parametrize(
    ("status", "code"), [(404, "not_found"), (405, "method_not_allowed"), (400, "malformed_request")]
)
def test_starlette_s_own_errors_become_problems(status: int, code: str) -> None:
    response = handle_error(REQUEST, HTTPException(status))
    assert (response.status_code, json.loads(bytes(response.body))["code"]) == (status, code)


def test_other_errors_are_raised_again() -> None:
    with pytest.raises(ZeroDivisionError):
        handle_error(REQUEST, ZeroDivisionError())


def test_an_internal_error_only_names_the_log() -> None:
    assert (internal_error().code, internal_error().document.status) == ("internal_error", 500)
    assert "log" in str(internal_error())

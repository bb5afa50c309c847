"""The check that a response is a problem document."""

from __future__ import annotations

from typing import Any, Protocol

from service.contract.problems import STATUS_OF


class Response(Protocol):
    """The part of a client's response that the check reads."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Any: ...
    @property
    def text(self) -> str: ...
    def json(self) -> Any: ...


def check_problem(response: Response, code: str, *, inference: bool = False) -> dict[str, Any]:
    """Check shape, status and code of a problem document, and return it; `inference` says whether it is one of the Open
    Inference Protocol's routes."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document: dict[str, Any] = response.json()
    assert set(document) == {"type", "title", "status", "detail", "code"} | ({"error"} if inference else set())
    assert document.get("error", document["detail"]) == document["detail"]
    status = STATUS_OF[code]
    assert (document["code"], document["status"], response.status_code) == (code, status, status), document
    return document

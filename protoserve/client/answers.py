"""What the service answers: documents of known shapes, or a `ServiceError` that says what came instead."""

from __future__ import annotations

from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from pydantic import BaseModel

from protoserve.errors import ServiceError
from protoserve.schema import Prediction

Document = TypeVar("Document", bound=BaseModel)

# What an answer raises that is not a document of the service, for example of a proxy.
_STRANGE: Final = (ValueError, KeyError, TypeError, RecursionError)


def refusal(response: httpx.Response) -> ServiceError:
    """Make the error for a failed response; that of a proxy has no problem document."""
    try:
        return _problem(response.json(), response.status_code)
    except _STRANGE:
        return _strange(response, "without a problem document")


def _strange(response: httpx.Response, what: str) -> ServiceError:
    hint = _proxy_of(response.url)
    return ServiceError(
        f"{response.url}: responded {response.status_code} {what}; is this a ProtoServe service?{hint}",
        "unknown",
        response.status_code,
    )


def _problem(document: Any, status: int) -> ServiceError:
    """Make the error of a problem document. Raises one of `_STRANGE` for anything else."""
    code, detail, status = document["code"], document.get("detail"), document.get("status", status)
    if not isinstance(code, str) or not isinstance(status, int):
        raise TypeError("not a problem document")
    return ServiceError(str(detail), code, status)


def no_response(error: httpx.RequestError, address: str, *, proxied: bool) -> ServiceError:
    """Make the error for a request without a response; `proxied` tells whether the environment's proxies apply."""
    reason = str(error) or type(error).__name__
    if not isinstance(error, httpx.TransportError):
        return ServiceError(
            f"{address}: can't read its response ({reason}); is this a ProtoServe service?", "unknown", 0
        )
    hint = _proxy_of(httpx.URL(address)) if proxied else ""
    return ServiceError(f"{address}: no response ({reason}); is the service running?{hint}", "unreachable", 0)


def _proxy_of(url: httpx.URL) -> str:
    """Name the proxy that the environment sets for a URL, without the password that its address may hold."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return ""
    shown = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    return (
        f" Requests to it go through the proxy {shown.hostname}:{shown.port or 80} ({url.scheme.upper()}_PROXY); to "
        f"ask it directly, set NO_PROXY={url.host}"
    )


def document(response: httpx.Response, model: type[Document], what: str) -> Document:
    """Read a document of a `model`; `what` names it. Raises ServiceError for anything else."""
    try:
        return model.model_validate_json(response.content)
    except _STRANGE as error:
        raise _strange(response, f"without {what}") from error


def predictions(response: httpx.Response, count: int) -> list[Prediction | ServiceError]:
    """Read a prediction or an error for each of `count` pictures; raises ServiceError for anything else."""
    try:
        results = [
            Prediction.model_validate(item["prediction"])
            if item["problem"] is None
            else _problem(item["problem"], response.status_code)
            for item in response.json()["results"]
        ]
    except _STRANGE as error:
        raise _strange(response, "without predictions") from error
    if len(results) != count:
        raise _strange(response, f"with {len(results)} predictions for {count} pictures")
    return results


def mapping(response: httpx.Response) -> dict[str, Any]:
    """Read a JSON object; raises ServiceError for anything else."""
    try:
        found = response.json()
    except _STRANGE as error:
        raise _strange(response, "without a document") from error
    if not isinstance(found, dict):
        raise _strange(response, "without a document")
    return found


def prototype_page(response: httpx.Response) -> tuple[list[dict[str, Any]], str | None]:
    """Read one page of prototypes and the cursor of the next, None on the last; raises ServiceError for anything
    else."""
    found = mapping(response)
    page, cursor = found.get("prototypes"), found.get("cursor")
    if not isinstance(page, list) or not isinstance(cursor, str | None):
        raise _strange(response, "without prototypes")
    return page, cursor


def picture_hash(response: httpx.Response) -> str:
    """Read the SHA-256 of a picture that is kept; raises ServiceError for anything else."""
    found = mapping(response).get("sha256")
    if not isinstance(found, str):
        raise _strange(response, "without the picture's SHA-256")
    return found

"""Middleware that requires an API key."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_keys import ApiKey, match_key, secret_from_headers
from service.contract.problems import Problem
from service.operations.request_context import current_context

# Probes, the page, and the document that says how to authenticate.
PUBLIC_PATHS: Final = frozenset(
    {"/", "/livez", "/readyz", "/healthz", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
)


class ApiKeyMiddleware:
    """Refuses requests that present none of `keys`, except for `PUBLIC_PATHS`."""

    def __init__(self, app: ASGIApp, keys: tuple[ApiKey, ...]) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            secret = secret_from_headers(scope["headers"])
            key = match_key(secret, self.keys) if secret is not None else None
            if key is None:
                await _refusal(secret).response()(scope, receive, send)
                return
            current_context().key = key.name
        await self.app(scope, receive, send)


def _refusal(secret: str | None) -> Problem:
    reason = "this service requires an API key" if secret is None else "this service does not know this API key"
    return Problem(
        "invalid_key",
        f"{reason}; send yours as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
        {"WWW-Authenticate": 'Bearer realm="protoserve"'},
    )

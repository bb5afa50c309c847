"""A synchronous way from the client to the real routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
from starlette.types import ASGIApp

ADDRESS = "http://service"


class Bridge(httpx.BaseTransport):
    """A synchronous transport to the routes; `before` may answer instead of them."""

    def __init__(self, app: ASGIApp, before: Callable[[], httpx.Response | None] = lambda: None) -> None:
        self.inner = httpx.ASGITransport(app)
        self.before = before

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if (answer := self.before()) is not None:
            return answer
        body = request.read()

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.inner, base_url=ADDRESS) as client:
                return await client.request(request.method, request.url, headers=request.headers, content=body)

        response = asyncio.run(ask())
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

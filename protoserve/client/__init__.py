"""Typed clients of the HTTP service: `Client`, and `AsyncClient` for asyncio.

They need the extra `client` (httpx and tenacity), but no model. They retry a request if the service is busy (429, 503)
or the connection fails, after `Retry-After` or with exponential backoff, whichever is longer.

>>> Client("http://127.0.0.1:3000").predict("photo.jpg", top_k=3).path    # doctest: +SKIP
"""

from protoserve.client.asynchronous import AsyncClient
from protoserve.client.synchronous import Client

__all__ = ["AsyncClient", "Client"]

"""Where the service is, and with which key it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import httpx

from protoserve.errors import InputError

TIMEOUT: Final = 60.0


def service_address(address: str) -> str:
    """Return the address; raises InputError for anything else."""
    parts = urlsplit(address)
    # `port` raises ValueError above 65535.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise InputError(f"{address!r} is not the address of a service; give one such as http://127.0.0.1:3000")
    return address


def http_headers(key: str | None) -> dict[str, str]:
    """Return the headers that send the key; raises InputError for a key that HTTP can't send."""
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable() and key.strip() == key and key):
        # The message does not repeat the key, which is a secret.
        raise InputError("the API key is empty or holds characters that HTTP can't send; give it as it was made")
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def input_errors(address: str) -> Iterator[None]:
    """Turn httpx's errors about the address or the environment's proxies into InputError."""
    try:
        yield
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise InputError(
            f"{address!r}: can't make a client of it ({error}); correct it, or the proxy settings"
        ) from None

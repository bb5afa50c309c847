"""API keys. Each has a name; the service stores only its hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "ps_"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ApiKey:
    """A key's name, for logs, and the SHA-256 of the key itself in hexadecimal.

    A plain hash is enough: a key holds 256 random bits, so a slow hash would add no protection against guessing.
    """

    name: str
    hash: str


def create_key(name: str) -> tuple[str, ApiKey]:
    """Create a random key. Returns the secret for the client and the record for the service.

    Raises ValueError for an invalid name.

    >>> secret, key = create_key("camera")
    >>> match_key(secret, (key,)).name
    'camera'
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a key's name is 1 to 40 letters, digits, '_', '.' or '-', not {name!r}")
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, ApiKey(name, _hash(secret))


def parse_key(text: str) -> ApiKey:
    """Parse `NAME:HASH`. Raises ValueError with a message that does not repeat `text`, which may hold a secret."""
    name, _, digest = text.rpartition(":")
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest):
        raise ValueError(
            "a key is written NAME:HASH, with the SHA-256 of the key in 64 hexadecimal digits; "
            "'protoserve key NAME' makes one"
        )
    return ApiKey(name, digest)


def match_key(secret: str, keys: tuple[ApiKey, ...]) -> ApiKey | None:
    """Return the key whose secret is `secret`, or None. Runs in constant time, to reveal nothing about the keys."""
    digest = _hash(secret)
    match = None
    for key in keys:
        if hmac.compare_digest(digest, key.hash):
            match = key
    return match


def secret_from_headers(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the secret in `Authorization: Bearer KEY` or `X-API-Key: KEY`, or None."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

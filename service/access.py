"""API keys: several, each with a name, known to the service only by their hashes."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "ps_"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """A key's name, for logs, and the SHA-256 of the key itself, in hexadecimal.

    A plain hash does: keys are 256 random bits, so there is nothing to guess that a slow hash would protect.
    """

    name: str
    hash: str


def new_key(name: str) -> tuple[str, Key]:
    """A fresh random key and what the service is told of it; raises ValueError for a name that is none.

    >>> key, known = new_key("camera")
    >>> find_key(key, (known,)).name
    'camera'
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a key's name is 1 to 40 letters, digits, '_', '.' or '-', not {name!r}")
    key = PREFIX + secrets.token_urlsafe(32)
    return key, Key(name, _hash(key))


def read_key(text: str) -> Key:
    """`NAME:HASH` as a key; raises ValueError, without showing what was given."""
    name, _, digest = text.rpartition(":")
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(digest):
        raise ValueError(
            "a key is written NAME:HASH, with the SHA-256 of the key in 64 hexadecimal digits; "
            "'protoserve key NAME' makes one"
        )
    return Key(name, digest)


def find_key(given: str, keys: tuple[Key, ...]) -> Key | None:
    """The key that `given` is, or None; how long it takes tells nothing of the keys."""
    digest = _hash(given)
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.hash):
            found = key
    return found


def presented_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The key that a request's headers present, `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

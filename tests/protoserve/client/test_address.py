"""Addresses and keys that can't be used."""

from __future__ import annotations

import pytest

from protoserve.client import AsyncClient, Client
from protoserve.errors import InputError
from tests.protoserve.client.bridge import ADDRESS


@pytest.mark.parametrize(
    "address", ["nonsense", "", "ftp://a", "http://", "127.0.0.1:3000", "http://a:99999999", "http://[::"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_impossible_address_is_bad_input(kind: type[Client] | type[AsyncClient], address: str) -> None:
    with pytest.raises(InputError):
        kind(address)


@pytest.mark.parametrize("key", ["", "sec\nret", " secret", "ключ"])
def test_an_impossible_key_is_bad_input_and_not_repeated(key: str) -> None:
    with pytest.raises(InputError, match="API key") as raised:
        Client(ADDRESS, key=key)
    assert not key or key not in str(raised.value)


def test_an_impossible_proxy_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(InputError, match="proxy"):
        Client(ADDRESS)

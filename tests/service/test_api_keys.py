"""API keys: their text form, their hashes, the headers that carry them."""

from __future__ import annotations

import hashlib

import pytest

from service.api_keys import ApiKey, create_key, match_key, parse_key, secret_from_headers


def test_only_the_hash_of_a_new_key_is_kept() -> None:
    secret, key = create_key("a")
    assert key == ApiKey("a", hashlib.sha256(secret.encode()).hexdigest())
    assert len({create_key("a")[0] for _ in range(20)}) == 20


@pytest.mark.parametrize("name", ["", "a b", "a" * 41, "a:b", "ä"])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a key's name is 1 to 40 letters"):
        create_key(name)


def test_a_key_survives_its_text_form() -> None:
    _, key = create_key("camera-1")
    assert parse_key(f"{key.name}:{key.hash}") == key


@pytest.mark.parametrize("text", ["", "name", "name:abc", f":{'0' * 64}", f"a b:{'0' * 64}", f"name:{'0' * 64}x"])
def test_an_invalid_text_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NAME:HASH"):
        parse_key(text)


def test_a_secret_matches_its_own_key_only() -> None:
    (first, first_key), (_, second_key) = create_key("first"), create_key("second")
    assert match_key(first, (second_key, first_key)) == first_key
    assert match_key(first, (second_key,)) is None
    assert match_key(first_key.hash, (first_key,)) is None


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"host", b"x"), (b"x-api-key", b" abc ")], "abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([], None),
    ],
)
def test_two_headers_can_carry_the_secret(headers: list[tuple[bytes, bytes]], secret: str | None) -> None:
    assert secret_from_headers(headers) == secret

"""Uploads: bodies and forms that are not images get a problem with the right code, never a failure."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from service.contract.problems import STATUS_OF, Problem
from service.contract.uploads import form_images, read_body, single_image
from tests.service.problems import check_problem
from tests.service.running import TestClient

JPEG = {"content-type": "image/jpeg"}


PNG = {"content-type": "image/png"}


SVG = {"content-type": "image/svg+xml"}


JSON = {"content-type": "application/json"}


URLENCODED = {"content-type": "application/x-www-form-urlencoded"}


FORM = {"content-type": "multipart/form-data; boundary=x"}


def png(width: int, height: int) -> bytes:
    """A PNG whose header states `width` × `height` pixels and whose data are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def noise() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"", JPEG, "missing_image"),
        (b"", {}, "missing_image"),
        (b"hello", JPEG, "unsupported_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", SVG, "unsupported_image"),
        (b"\xff\xd8\xff\xe0 and no more", JPEG, "broken_image"),
        (noise()[:900], JPEG, "broken_image"),
        (png(30_000, 30_000), PNG, "image_too_large"),
        (png(1_001, 1_000), PNG, "image_too_large"),
        (b'{"image": "http://127.0.0.1/a.jpg"}', JSON, "unsupported_media_type"),
        (b"image=http://127.0.0.1/a.jpg", URLENCODED, "unsupported_media_type"),
        (b"hello", {"content-type": "text/plain"}, "unsupported_media_type"),
        (b"hello", {"content-type": "image"}, "unsupported_media_type"),
        (gzip.compress(noise()), {**JPEG, "content-encoding": "gzip"}, "unsupported_encoding"),
        (b"x" * 200_001, JPEG, "request_too_large"),
        (b"hello", {"content-type": "multipart/form-data"}, "invalid_multipart"),
        (b"hello", FORM, "invalid_multipart"),
        (b"", FORM, "missing_image"),
        (b"--x--\r\n", FORM, "missing_image"),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nhalf of it',
            FORM,
            "invalid_multipart",
        ),
        (b"--x\r\n\r\nno headers\r\n--x--\r\n", FORM, "unexpected_part"),
        (b"--x\r\n" + b"a" * 9000, FORM, "invalid_multipart"),
        (b"hello", {"content-type": "multipart/form-data; boundary=" + "x" * 300}, "invalid_multipart"),
    ],
)
def test_an_invalid_body_is_refused(client: TestClient, body: bytes, headers: dict[str, str], code: str) -> None:
    check_problem(client.post("/v1/predict", content=body, headers=headers), code)


@pytest.mark.parametrize(
    ("parts", "code", "said"),
    [
        ([("picture", ("a.jpg", b"x"))], "unexpected_part", "'picture'"),
        ([("imag", ("a.jpg", b"x"))], "unexpected_part", "did you mean 'image'?"),
        ([("image", (None, b"http://127.0.0.1:1/a.jpg"))], "unexpected_part", "not fetched"),
        ([("image", ("a", noise())), ("image", ("b", noise()))], "too_many_images", "1 image"),
        ([("image", ("a", noise())), ("top_k", (None, b"3"))], "unexpected_part", "'top_k'"),
        ([("image", ("a", b""))], "missing_image", "empty"),
        (
            [("image", ("http://127.0.0.1/a.jpg", b"http://127.0.0.1/a.jpg"))],
            "unsupported_image",
            "",
        ),
    ],
)
def test_an_invalid_form_is_refused(client: TestClient, parts: list[Any], code: str, said: str) -> None:
    assert said in check_problem(client.post("/v1/predict", files=parts), code)["detail"]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([("image", (str(index), noise())) for index in range(4)], "too_many_images"),
        ([("images", ("a", noise()))], "unexpected_part"),
    ],
)
def test_an_invalid_batch_is_refused(client: TestClient, parts: list[Any], code: str) -> None:
    check_problem(client.post("/v1/predict/batch", files=parts), code)


def test_a_batch_must_be_a_form(client: TestClient) -> None:
    check_problem(client.post("/v1/predict/batch", content=noise(), headers=JPEG), "unsupported_media_type")


def test_a_body_without_a_declared_length_is_counted_as_it_arrives(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield b"x" * 10_000

    check_problem(client.post("/v1/predict", content=endless(), headers=JPEG), "request_too_large")


def request_of(chunks: AsyncIterator[bytes]) -> Request:
    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_reading_stops_at_the_first_chunk_beyond_the_limit() -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 10
            yield b"x" * 10

    with pytest.raises(Problem) as raised:
        anyio.run(lambda: read_body(request_of(chunks()), limit=95, seconds=5))
    assert (raised.value.code, read) == ("request_too_large", 100)


def test_a_stalled_body_is_refused() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.sleep_forever()

    with pytest.raises(Problem) as raised:
        anyio.run(lambda: read_body(request_of(chunks()), limit=95, seconds=0.05))
    assert (raised.value.code, raised.value.headers) == ("request_timeout", {"Connection": "close"})
    assert "1 bytes" in str(raised.value)


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_a_form_returns_the_bytes_that_were_put_in(data: bytes, other: bytes) -> None:
    boundary = b"a-boundary-that-no-example-holds"
    head = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    body = head + data + b"\r\n" + head + other + b"\r\n--" + boundary + b"--\r\n"
    content_type = f"multipart/form-data; boundary={boundary.decode()}"
    assert form_images(content_type, body, limit=2) == [data, other]


@given(st.binary(max_size=400))
def test_any_bytes_as_a_form_are_images_or_a_problem(body: bytes) -> None:
    for prefix in (
        b"",
        b"--x\r\n",
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n',
    ):
        try:
            assert form_images("multipart/form-data; boundary=x", prefix + body, limit=2)
        except Problem as problem:
            assert 400 <= STATUS_OF[problem.code] < 500


def test_the_media_type_ignores_case_and_parameters() -> None:
    assert single_image("IMAGE/JPEG; q=1", b"x") == b"x"


def test_an_image_may_use_every_byte_of_the_limit(client: TestClient, photograph: Path) -> None:
    data = photograph.read_bytes()
    padded = data + b"\0" * (200_000 - len(data))
    assert client.post("/v1/predict", content=padded, headers=JPEG).status_code == 200


def test_every_chunk_is_reserved_before_it_is_kept() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"defgh"

    sizes: list[int] = []
    assert anyio.run(lambda: read_body(request_of(chunks()), limit=95, seconds=5, reserve=sizes.append)) == b"abcdefgh"
    assert [size for size in sizes if size] == [3, 5]


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Disposition: form-data; name=\"image\"; filename*=UTF-8''gr%C3%BCn.jpg",
        b'Content-Disposition: form-data; name="image"; FILENAME*0="a"; filename*1="b"',
        b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/jpeg',
        b'content-type: IMAGE/PNG\r\ncontent-disposition: form-data; name="image"',
        b'Content-Disposition: form-data; name="image"\r\nContent-Type: application/octet-stream',
    ],
)
def test_a_part_with_any_form_of_file_name_or_an_image_type_is_a_file(headers: bytes) -> None:
    body = b"--x\r\n" + headers + b"\r\n\r\nbytes\r\n--x--\r\n"
    assert form_images("multipart/form-data; boundary=x", body, limit=1) == [b"bytes"]


@pytest.mark.parametrize("content_type", [b"", b"\r\nContent-Type: text/plain; charset=utf-8"])
def test_a_part_without_file_name_or_image_type_is_text(content_type: bytes) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="image"' + content_type + b"\r\n\r\nbytes\r\n--x--\r\n"
    with pytest.raises(Problem, match="holds text"):
        form_images("multipart/form-data; boundary=x", body, limit=1)


@pytest.mark.parametrize("before", [b"", b"\r\n", b"This is a message in MIME format.\r\n", b"--xy\r\na: b\r\n"])
@pytest.mark.parametrize("after", [b"", b"\r\n", b"\r\nThe end.\r\n"])
def test_text_before_and_after_the_form_is_ignored(before: bytes, after: bytes) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nbytes\r\n--x--'
    assert form_images("multipart/form-data; boundary=x", before + part + after, limit=1) == [b"bytes"]

"""Pictures out of requests: bodies read within limits, multipart forms taken apart.

Only bytes are ever taken. BentoML's own file fields would fetch a URL that a client puts in place of a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from protoserve.errors import nearest
from service.problems import Problem

FIELD: Final = "image"
FORM: Final = "multipart/form-data"
BINARY: Final = "application/octet-stream"


async def read_body(
    request: Request, *, limit: int, seconds: float, take: Callable[[int], None] = lambda count: None
) -> bytes:
    """The request's body, counted as it arrives, whether or not its length was declared.

    `take` is told of every chunk's bytes before they are kept; it may refuse them by raising a Problem.

    Raises Problem `request_too_large` beyond `limit` bytes (at once when the declared length is),
    `request_timeout` when it is not whole after `seconds`, `unsupported_encoding` when it is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise Problem(
            "unsupported_encoding",
            f"Content-Encoding {encoding[:40]!r} is not supported; send the image as it is",
        )
    too_large = Problem("request_too_large", f"the request has more than the {limit:,} bytes allowed; send less")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                take(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            "request_timeout",
            f"only {size:,} bytes of the request came within {seconds:g} seconds; send it again",
            {"Connection": "close"},
        ) from None
    return b"".join(chunks)


def single_image(content_type: str, body: bytes) -> bytes:
    """The one picture of `POST /v1/predict`, raw or in a form.

    Raises Problem `unsupported_media_type` for another kind of body, `missing_image` for an empty one, and
    what `form_images` raises.
    """
    kind = content_type.partition(";")[0].strip().lower() or BINARY
    if kind == FORM:
        [body] = form_images(content_type, body, most=1)
    elif kind != BINARY and not kind.startswith("image/"):
        raise Problem(
            "unsupported_media_type",
            f"Content-Type {kind[:80]!r} is not read; send the image's bytes with Content-Type image/jpeg "
            f"(or its own), or a {FORM} field {FIELD!r}",
        )
    if not body:
        raise Problem("missing_image", "the picture is empty; send an image's bytes")
    return body


def form_images(content_type: str, body: bytes, *, most: int) -> list[bytes]:
    """The pictures of a multipart form in their order: 1 to `most` file parts, all named `image`.

    Raises Problem `unsupported_media_type`, `invalid_multipart`, `unexpected_part` (another name, or text in
    place of a file), `missing_image` or `too_many_images`.
    """
    kind, parameters = parse_options_header(content_type)
    if kind != FORM.encode():
        raise Problem("unsupported_media_type", f"Content-Type {content_type[:80]!r} is not read here; send {FORM}")
    parts = _parts(parameters.get(b"boundary", b""), body, most)
    if not parts:
        raise Problem("missing_image", f"the form is empty; send a file in the field {FIELD!r}")
    return parts


class _Collector:
    """Callbacks of the multipart parser: they take file parts named `image` and refuse all others by name."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[bytes] = []
        self.ended = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._data: list[bytes] = []

    def on_part_begin(self) -> None:
        self._disposition = b""
        self._data = []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", errors="replace")
        if name != FIELD:
            raise Problem(
                "unexpected_part",
                f"the form has a field {name[:80]!r}; only {FIELD!r} is read{nearest(name[:80], [FIELD])}",
            )
        if b"filename" not in options:
            raise Problem(
                "unexpected_part",
                f"the field {FIELD!r} holds text; send the picture itself as a file part; addresses are not fetched",
            )
        if len(self.parts) == self.most:
            raise Problem(
                "too_many_images",
                f"the form has more than the {self.most} image(s) allowed; send several requests",
            )

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def on_part_end(self) -> None:
        self.parts.append(b"".join(self._data))

    def on_end(self) -> None:
        self.ended = True


def _parts(boundary: bytes, body: bytes, most: int) -> list[bytes]:
    if not boundary:
        raise Problem("invalid_multipart", f"Content-Type {FORM} has no boundary; let your HTTP client set the header")
    collector = _Collector(most)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.on_part_begin,
                "on_header_field": collector.on_header_field,
                "on_header_value": collector.on_header_value,
                "on_header_end": collector.on_header_end,
                "on_headers_finished": collector.on_headers_finished,
                "on_part_data": collector.on_part_data,
                "on_part_end": collector.on_part_end,
                "on_end": collector.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem("invalid_multipart", f"the form can't be taken apart ({error}); send it again") from error
    if body and not collector.ended:
        raise Problem("invalid_multipart", "the form ends before its last boundary; send it again")
    return collector.parts

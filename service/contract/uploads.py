"""Image uploads: reads request bodies within limits and parses multipart forms.

Only bytes are accepted. BentoML's own file fields would fetch a URL that a client sends in place of a file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Final

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from protoserve.errors import nearest
from service.contract.problems import Problem

FIELD: Final = "image"
FORM: Final = "multipart/form-data"
BINARY: Final = "application/octet-stream"
# `filename`, also as RFC 5987 writes names that are not ASCII, which the parser of options leaves out.
_FILE_NAME: Final = re.compile(rb";\s*filename\*?[0-9]*\*?\s*=", re.IGNORECASE)


async def read_body(
    request: Request, *, limit: int, seconds: float, reserve: Callable[[int], None] = lambda count: None
) -> bytes:
    """Read the request's body and count its bytes as they arrive, whether or not the client declared a length.

    Calls `reserve` with the size of each chunk before it keeps the chunk; `reserve` may refuse it by raising a Problem.

    Raises Problem `request_too_large` beyond `limit` bytes (at once when the declared length exceeds it),
    `request_timeout` when the body is incomplete after `seconds`, `unsupported_encoding` when it is compressed.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise Problem(
            "unsupported_encoding",
            f"Content-Encoding {encoding[:40]!r} is not supported; send the image uncompressed",
        )
    too_large = Problem("request_too_large", f"the request has more than the {limit:,} bytes allowed; send less")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise too_large
    # Hands its bytes over without a copy.
    received = io.BytesIO()
    size = 0
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                reserve(len(chunk))
                received.write(chunk)
    except TimeoutError:
        raise Problem(
            "request_timeout",
            f"only {size:,} bytes of the request arrived within {seconds:g} seconds; send it again",
            {"Connection": "close"},
        ) from None
    return received.getvalue()


def single_image(content_type: str, body: bytes) -> bytes:
    """Extract the image of `POST /v1/predict`, sent as the raw body or in a form.

    Raises Problem `unsupported_media_type` for another kind of body, `missing_image` for an empty one, and the
    problems of `form_images`.
    """
    media_type = content_type.partition(";")[0].strip().lower() or BINARY
    if media_type == FORM:
        body = bytes(form_images(content_type, body, limit=1)[0])
    elif media_type != BINARY and not media_type.startswith("image/"):
        raise Problem(
            "unsupported_media_type",
            f"Content-Type {media_type[:80]!r} is not supported; send the image's bytes with Content-Type image/jpeg "
            f"(or that of its format), or a {FORM} field {FIELD!r}",
        )
    if not body:
        raise Problem("missing_image", "the image is empty; send its bytes")
    return body


def form_images(content_type: str, body: bytes, *, limit: int) -> list[memoryview]:
    """Extract the images of a multipart form in their order: 1 to `limit` file parts, all named `image`.

    They are views of the body, not copies.

    Raises Problem `unsupported_media_type`, `invalid_multipart`, `unexpected_part` (another name, or text in
    place of a file), `missing_image` or `too_many_images`.
    """
    media_type, parameters = parse_options_header(content_type)
    if media_type != FORM.encode():
        raise Problem(
            "unsupported_media_type", f"Content-Type {content_type[:80]!r} is not supported by this route; send {FORM}"
        )
    parts = _parse_form(parameters.get(b"boundary", b""), body, limit)
    if not parts:
        raise Problem("missing_image", f"the form is empty; send a file in the field {FIELD!r}")
    return parts


class _PartCollector:
    """Callbacks of the multipart parser. They collect file parts named `image` and refuse any other part."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.parts: list[memoryview] = []
        self.ended = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = self._type = b""
        self._content = memoryview(b"")

    def on_part_begin(self) -> None:
        self._disposition = self._type = b""
        self._content = memoryview(b"")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        elif self._header.lower() == b"content-type":
            self._type = bytes(self._value).strip().lower()
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", errors="replace")
        if name != FIELD:
            raise Problem(
                "unexpected_part",
                f"the form has a field {name[:80]!r}; only {FIELD!r} is supported{nearest(name[:80], [FIELD])}",
            )
        is_file = _FILE_NAME.search(self._disposition) or self._type.startswith((b"image/", BINARY.encode()))
        if not is_file:
            raise Problem(
                "unexpected_part",
                f"the field {FIELD!r} holds text; send the image itself as a file part; URLs are not fetched",
            )
        if len(self.parts) == self.limit:
            raise Problem(
                "too_many_images",
                f"the form has more than the {self.limit} image(s) allowed; send several requests",
            )

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        # The parser gets the whole body at once, so all of a part's content is one stretch of it.
        self._content = memoryview(data)[start - len(self._content) : end]

    def on_part_end(self) -> None:
        self.parts.append(self._content)

    def on_end(self) -> None:
        self.ended = True


def _parse_form(boundary: bytes, body: bytes, limit: int) -> list[memoryview]:
    if not boundary:
        raise Problem("invalid_multipart", f"Content-Type {FORM} has no boundary; let your HTTP client set the header")
    collector = _PartCollector(limit)
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
        parser.write(_without_preamble(boundary, body))
        parser.finalize()
    except FormParserError as error:
        raise Problem("invalid_multipart", f"the form cannot be parsed ({error}); send it again") from error
    if body and not collector.ended:
        raise Problem("invalid_multipart", "the form ends before its last boundary; send it again")
    return collector.parts


def _without_preamble(boundary: bytes, body: bytes) -> bytes:
    """Return the form from its first boundary on. RFC 2046 allows text before it, which is to be ignored."""
    first = re.search(rb"(?:\A|\r\n)(--" + re.escape(boundary) + rb")(?=[ \t]*\r\n|--)", body)
    return body[first.start(1) :] if first is not None and first.start(1) else body

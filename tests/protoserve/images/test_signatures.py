"""Content is named as what it is."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from protoserve.images.formats import readable_formats
from protoserve.images.signatures import WEB_FORMATS, description, format_of, listed

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEmiafheic"


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", [*WEB_FORMATS, "AVIF", "JPEG2000"])
def test_the_format_is_that_of_the_content(kind: str) -> None:
    assert kind in readable_formats()
    assert format_of(picture(kind)) == kind


def test_heic_and_avif_are_told_apart_by_their_brands() -> None:
    assert format_of(HEIC) == "HEIF"
    assert format_of(HEIC.replace(b"ftypheic", b"ftypmif1")) == "HEIF"
    assert format_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == "AVIF"
    assert format_of(b"\0\0\0\x18ftypisom\0\0\0\0isommp41") is None


@pytest.mark.parametrize("kind", WEB_FORMATS)
def test_base64_text_and_data_urls_are_named_with_their_cure(kind: str) -> None:
    text = base64.b64encode(picture(kind))
    wrapped = base64.encodebytes(picture(kind))
    for sent in (text, b'"' + text + b'"', b"\n" + wrapped):
        assert description(sent) == (f"the base64 text of a {listed((kind,))}", "send the decoded bytes"), sent[:20]
    for head in (b"data:image/png;base64,", b"data:;base64,", b" DATA:image/jpeg;charset=utf-8;base64,"):
        assert description(head + text) == ("the text of a data URL", "send the decoded bytes")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (HEIC, "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "an SVG drawing"),
        (b"<!DOCTYPE html><html><body>", "an HTML page"),
        (b'{"image": "..."}', "JSON text"),
        (b"https://example.com/a.jpg", "an address"),
        (b"file:///etc/passwd", "an address"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "a video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    ],
)
def test_other_content_is_named(content: bytes, name: str) -> None:
    known = description(content)
    assert known is not None
    assert known[0] == name


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", b"abcd", b"aGVsbG8=", bytes(300), b"\xff" * 20])
def test_unknown_content_has_no_name(content: bytes) -> None:
    assert description(content) is None

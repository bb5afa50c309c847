"""Tells a file's format from its first bytes, and names what people send in place of a picture."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

# What browsers and cameras write, and the service reads by default.
WEB_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_SIGNATURES: Final[Mapping[str, tuple[bytes, ...]]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": (b"GIF8",),
    "JPEG2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
}
_NAMES: Final[Mapping[str, str]] = {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "HEIF": "HEIC"}
# ISO base media files start with a box `ftyp` that names their brand.
_BRANDS: Final[Mapping[bytes, str]] = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"), "HEIF"),
}
# Content that people send in place of a picture, by its first bytes.
_OTHERS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF-", "a PDF document"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"8BPS", "a Photoshop document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\0\0\x01\0", "a Windows icon"),
    (b"\x1aE\xdf\xa3", "a video"),
)
_MARKUP: Final = re.compile(rb"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*|<!DOCTYPE[^>]*>\s*)*<(svg|html)\b", re.I | re.S)
_DATA_URL: Final = re.compile(rb"\s*data:([\w.+-]+/[\w.+-]+)?[^,]{0,100},", re.I)
_ADDRESS: Final = re.compile(rb"\s*(?:https?|ftp|file|s3|gs)://", re.I)
_JSON: Final = re.compile(rb"\s*[\[{]\s*[\"{\[\]}\d]")
_HEAD: Final = 200


def format_of(data: bytes) -> str | None:
    """Return the format that a file's first bytes state, one of `formats.PICTURE_FORMATS`; None for anything else.

    >>> format_of(b"GIF89a...")
    'GIF'
    """
    if data.startswith(b"RIFF"):
        # A file that ends here may still have been a WebP.
        return "WEBP" if data[8:12] == b"WEBP"[: len(data[8:12])] else None
    if data[4:8] == b"ftyp":
        brands = [data[start : start + 4] for start in (8, *range(16, min(64, int.from_bytes(data[:4], "big")), 4))]
        found = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        # A file of either kind may list the other's general brand.
        return "AVIF" if "AVIF" in found else found[0] if found else None
    return next((name for name, starts in _SIGNATURES.items() if data.startswith(starts)), None)


def description(data: bytes) -> tuple[str, str] | None:
    """Say what content is that is not a picture in a readable format, and what to do about it; None if unknown.

    >>> description(b"data:image/png;base64,iVBORw0KGgo=")
    ('the text of a data URL', 'send the decoded bytes')
    """
    head = bytes(data[:_HEAD])
    name = format_of(head)
    if name is not None:
        return f"{_NAMES.get(name, name)}", "convert it"
    if _DATA_URL.match(head):
        return "the text of a data URL", "send the decoded bytes"
    if _ADDRESS.match(head):
        return "an address", "send the picture itself; addresses are not fetched"
    if inside := _format_in_base64(head):
        return f"the base64 text of a {listed((inside,))}", "send the decoded bytes"
    if markup := _MARKUP.match(head):
        return (
            ("an SVG drawing", "render it as PNG")
            if markup[1].lower() == b"svg"
            else ("an HTML page", "send the picture itself")
        )
    if _JSON.match(head):
        return "JSON text", "send the bytes of the picture alone"
    if head[4:8] == b"ftyp":
        return "a video", "send one of its frames as a picture"
    return next(((what, "convert it") for start, what in _OTHERS if head.startswith(start)), None)


def listed(formats: tuple[str, ...]) -> str:
    """Name formats in a sentence.

    >>> listed(("JPEG", "WEBP"))
    'JPEG or WebP'
    """
    *others, last = (_NAMES.get(name, name) for name in formats)
    return f"{', '.join(others)} or {last}" if others else last


def _format_in_base64(head: bytes) -> str | None:
    text = head.strip(b"\"' \r\n\t").translate(None, b"\r\n")
    try:
        found = format_of(base64.b64decode(text[: len(text) // 4 * 4], altchars=None, validate=True))
    except (binascii.Error, ValueError):
        return None
    return found

"""The picture formats that this installation reads, and the suffixes of their files.

Folders are searched by these suffixes; `protoserve.images.decoding` looks only at the content.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import PurePath
from typing import Final

from PIL import Image

# The formats of photographs and drawings among the many that Pillow opens; the others are for printers, consoles and
# scientific instruments. HEIF needs the extra `heif`.
PICTURE_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "HEIF")
# Pillow's modules for them. `Image.init` would load all others, too, which every process would wait for.
_PLUGINS: Final = ("Jpeg", "Png", "WebP", "Bmp", "Tiff", "Gif", "Avif", "Jpeg2K")
# Suffixes of formats that only an extra, or another build of Pillow, can read.
_OTHER_SUFFIXES: Final = {
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), "HEIF"),
    **dict.fromkeys((".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), "JPEG2000"),
}


@cache
def readable_formats() -> tuple[str, ...]:
    """Return those of `PICTURE_FORMATS` that this Pillow and its installed extensions can open."""
    try:
        import pillow_heif
    except ModuleNotFoundError:
        pass
    else:
        pillow_heif.register_heif_opener()
    for plugin in _PLUGINS:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in PICTURE_FORMATS if name in Image.OPEN)


@cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of files that hold a picture of a readable format, such as `.jpeg`."""
    formats = readable_formats()
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in formats)


def has_picture_suffix(file: PurePath | str) -> bool:
    """Return whether a file's name says that it is a picture that can be read here.

    >>> has_picture_suffix("IMG_0001.JPEG"), has_picture_suffix("notes.txt")
    (True, False)
    """
    return PurePath(file).suffix.lower() in picture_suffixes()


def unreadable_format(file: PurePath | str) -> str | None:
    """Return the format of a picture file that this installation can't read, such as `HEIF`; None for any other."""
    suffix = PurePath(file).suffix.lower()
    return None if suffix in picture_suffixes() else _OTHER_SUFFIXES.get(suffix)

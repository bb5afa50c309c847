"""The suffixes that folders are searched by: those that Pillow and its extensions register, in any case."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image, features

from protoserve.images.formats import (
    PICTURE_FORMATS,
    has_picture_suffix,
    picture_suffixes,
    readable_formats,
    unreadable_format,
)


def test_every_common_suffix_of_a_readable_format_is_a_picture() -> None:
    for suffix in ("jpg", "jpeg", "jfif", "jpe", "png", "webp", "bmp", "tif", "tiff", "gif"):
        assert has_picture_suffix(f"photo.{suffix}") and has_picture_suffix(f"PHOTO.{suffix.upper()}"), suffix
    for suffix, feature in (("avif", "avif"), ("jp2", "jpg_2000")):
        assert has_picture_suffix(f"photo.{suffix}") == features.check(feature)


def test_other_files_are_not_pictures() -> None:
    for name in ("notes.txt", "clip.mpg", "page.pdf", "drawing.eps", "array.h5", "jpg", ".jpg", "photo.jpg.part"):
        assert not has_picture_suffix(name), name


def test_only_suffixes_of_formats_that_pillow_opens_count() -> None:
    registered = Image.registered_extensions()
    assert {registered[suffix] for suffix in picture_suffixes()} == set(readable_formats())
    assert set(readable_formats()) <= set(PICTURE_FORMATS)
    assert all(name in Image.OPEN for name in readable_formats())


def test_no_other_formats_of_pillow_are_loaded() -> None:
    code = (
        "import sys; from protoserve.images.formats import has_picture_suffix as found; assert found('a.png'); "
        "print(sum(name.endswith('ImagePlugin') for name in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Formats that build on others bring them: PPM, MPO and the like.
    assert len(readable_formats()) <= int(loaded.stdout) <= 2 * len(PICTURE_FORMATS)


@pytest.mark.parametrize("name", ["photo.heic", "PHOTO.HEIF", "photo.hif"])
def test_a_picture_that_needs_an_extra_is_named_by_its_format(name: str) -> None:
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from protoserve.images.formats import has_picture_suffix, unreadable_format\n"
        f"print(has_picture_suffix({name!r}), unreadable_format({name!r}), unreadable_format('photo.jpg'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False HEIF None\n"


def test_a_file_that_is_no_picture_has_no_format() -> None:
    assert unreadable_format("notes.txt") is None and unreadable_format("photo.jpg") is None

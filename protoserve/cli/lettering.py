"""Lines of text in figures, in any script for which the machine has a font.

Pillow's built-in font has little beyond ASCII. A line that needs more is set in the first font of the machine that has
all its characters: that of `PROTOSERVE_FONT`, then those that systems commonly install for wide coverage.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from PIL import ImageDraw, ImageFont

from protoserve.errors import InputError

FONT: Final = "PROTOSERVE_FONT"
INK: Final = (24, 28, 36)
# Families with wide coverage, by the start of their files' names, the most complete and most readable first.
_FAMILIES: Final = (
    "NotoSans-Regular",
    "NotoSansCJK",
    "NotoSans",
    "SourceHanSans",
    "Arial Unicode",
    "ArialUni",
    "PingFang",
    "Hiragino",
    "AppleSDGothicNeo",
    "msyh",
    "YuGoth",
    "meiryo",
    "malgun",
    "segoeui",
    "tahoma",
    "DroidSansFallback",
    "wqy-",
    "unifont",
    "DejaVuSans.",
    "FreeSans.",
    "Arial.",
)
_FOLDERS: Final = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)
# No font has this character, so its picture is that of every character that a font lacks.
_ABSENT: Final = "\U0010ffff"


class Pen:
    """Writes single lines of text into a picture."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def write(
        self,
        position: tuple[float, float],
        text: str,
        size: int,
        colour: tuple[int, int, int] = INK,
        width: float | None = None,
    ) -> float:
        """Write a line of text, shortened to `width` pixels; returns its right end in pixels."""
        drawable, font = lettering(text, size)
        if width is not None and font.getlength(drawable) > width:
            # The text is shortened from the left, because the end of a path identifies it best.
            while drawable and font.getlength(f"…{drawable}") > width:
                drawable = drawable[1:]
            drawable = f"…{drawable}"
        self.draw.text(position, drawable, fill=colour, font=font)
        return position[0] + float(font.getlength(drawable))


def lettering(text: str, size: int) -> tuple[str, Any]:
    """Return the text as it can be drawn, and a font of `size` pixels for it.

    Where no font has all characters, accents are dropped and other characters become `?`. Raises InputError if
    `PROTOSERVE_FONT` does not name a font.
    """
    reduced = text.replace("×", "x")
    file = None if _is_built_in(reduced) else _font_file(text)
    if file is None:
        return _reduced(reduced), ImageFont.load_default(size=size)
    return text, ImageFont.truetype(file, size)


def undrawable(texts: Iterable[str]) -> str | None:
    """Return the first text of which figures show `?`, because no font of this machine has its characters."""
    return next((text for text in texts if "?" in _reduced(text.replace("?", "")) and _font_file(text) is None), None)


def _is_built_in(text: str) -> bool:
    return all(" " <= letter <= "~" or letter in "›…" for letter in text)


def _reduced(text: str) -> str:
    """Reduce a text to the characters of the built-in font."""
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if _is_built_in(letter) else "?" for letter in letters)


@lru_cache(maxsize=4096)
def _font_file(text: str) -> str | None:
    """Return the first font file that has all characters of a text, None if there is none."""
    letters = {letter for letter in text if not letter.isspace() and not unicodedata.combining(letter)}
    return next((file for file in _candidates() if letters <= _held(file, frozenset(letters))), None)


@cache
def _candidates() -> tuple[str, ...]:
    """All fonts to try, in order."""
    chosen = os.environ.get(FONT)
    if chosen:
        try:
            ImageFont.truetype(chosen, 16)
        except OSError as error:
            raise InputError(
                f"{FONT}={chosen}: not a font file ({error}); give a TrueType or OpenType file, or unset it"
            ) from error
    found = sorted((place, str(file)) for file in _font_files() if (place := _place(file.name)) is not None)
    return (*((chosen,) if chosen else ()), *(file for _, file in found))


def _font_files() -> Iterator[Path]:
    for folder in _FOLDERS:
        for suffix in ("ttf", "ttc", "otf"):
            yield from Path(folder).expanduser().glob(f"**/*.{suffix}")


def _place(name: str) -> int | None:
    """The rank of a font file among the families; None for other families, and for bold and slanted faces."""
    if any(style in name for style in ("Bold", "Italic", "Oblique", "Black", "Light", "Thin", "Mono", "Serif")):
        return None
    return next((rank for rank, family in enumerate(_FAMILIES) if name.lower().startswith(family.lower())), None)


@lru_cache(maxsize=4096)
def _held(file: str, letters: frozenset[str]) -> frozenset[str]:
    """Those of the letters that a font has."""
    try:
        font = ImageFont.truetype(file, 16)
    except OSError:
        # A damaged file, or a format that Pillow does not read.
        return frozenset()
    absent = bytes(font.getmask(_ABSENT))
    return frozenset(letter for letter in letters if bytes(font.getmask(letter)) != absent)

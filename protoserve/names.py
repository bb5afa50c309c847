"""Names of classes and files that come from others: their normal form, look-alikes, and how they are shown."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Characters that a terminal or a log obeys instead of showing: control characters, separators of lines and paragraphs,
# and those that turn the direction of writing. Lone surrogates stand for bytes of a file name that is not UTF-8.
_OBEYED: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Invisible, so that two names with and without them look the same: zero-width characters, the soft hyphen and fillers.
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]"
)


# What file managers leave in folders.
_SYSTEM_FILES: Final = frozenset({".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", ".localized"})


def is_system_file(name: str) -> bool:
    """Return whether a file manager left a file of this name, which nobody means.

    >>> is_system_file(".DS_Store"), is_system_file("._photo.jpg"), is_system_file("photo.jpg")
    (True, True, False)
    """
    return name in _SYSTEM_FILES or name.startswith("._")


def visible(text: str) -> str:
    r"""Return the text with escapes in place of characters that a terminal obeys, other than newline and tab.

    A byte of a file name that is not UTF-8 is shown as itself.

    >>> print(visible("red\x1b[31m, caf\udce9"))
    red\x1b[31m, caf\xe9
    """
    return _OBEYED.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Return `visible(text)` with escapes also for newline and tab.

    >>> print(one_line("a\nb"))
    a\nb
    """
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def is_plain(text: str) -> bool:
    r"""Return whether a text has no character that a terminal obeys, so that it may name a class or a model.

    >>> is_plain("Crème"), is_plain("a\nb"), is_plain("\x1b[31m")
    (True, False, False)
    """
    return one_line(text) == text


def is_utf8(text: str) -> bool:
    r"""Return whether a file's name is UTF-8, so that records can hold it.

    >>> is_utf8("café"), is_utf8("caf\udce9")
    (True, False)
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def normal(name: str) -> str:
    """Return the name in Unicode's composed form (NFC), the one that keyboards and most file systems give.

    >>> normal("Cre\\u0300me") == "Crème"
    True
    """
    return unicodedata.normalize("NFC", name)


def look(name: str) -> str:
    """Return a key that is equal for names that people can't tell apart, or that some file systems can't.

    It disregards compatibility forms, case, invisible characters and kinds of spaces.

    >>> look("Gala\\u200b") == look("gala"), look("Red\\u00a0Apple") == look("Red Apple"), look("Gala") == look("Gold")
    (True, True, False)
    """
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).casefold()
    return unicodedata.normalize("NFKC", " ".join(folded.split()))


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

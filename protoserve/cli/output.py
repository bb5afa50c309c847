"""Everything that the commands print goes through here.

Text from others (names of classes, files and bundles) is shown and never obeyed by the terminal, and no character is
too much for its encoding.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from protoserve.names import one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

# How our own texts are written where the encoding lacks a character.
_PLAIN: Final = {
    "–": "-",
    "—": "-",
    "−": "-",
    "‑": "-",
    "×": "x",
    "·": ".",
    "…": "...",
    "›": ">",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "σ": "sigma",
    "²": "^2",
    "\N{NO-BREAK SPACE}": " ",
}
_HANDLER: Final = "protoserve-plain"


def prepare_streams() -> None:
    """Make standard output and error write a substitute for each character that their encoding lacks."""
    codecs.register_error(_HANDLER, _substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def say(text: str, *, error: bool = False) -> None:
    """Print lines on standard output, or on standard error."""
    stream = sys.stderr if error else sys.stdout
    stream.write(visible(text) + "\n")
    stream.flush()


def say_line(text: str, *, error: bool = False) -> None:
    """Print one line; line breaks in the text are shown as escapes."""
    say(one_line(text), error=error)


def console(*, error: bool = False, width: int | None = None) -> Console:
    """Make a console for formatted text and progress, on standard output or on standard error.

    Output into a pipe is read by programs; `width` is then the length at which its lines wrap. None: the terminal's.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Showing(Console):
        """Shows control characters in texts instead of sending them; rich sends its own ones apart from texts."""

        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    stream = sys.stderr if error else sys.stdout
    # Names may hold what rich takes for markup, such as `[/red]`.
    return Showing(stderr=error, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else width)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_without, error.object[error.start : error.end])), error.end


def _without(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    code = ord(character)
    # As JSON and Python write it.
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"

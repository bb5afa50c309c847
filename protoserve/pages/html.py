"""HTML as text: elements whose attributes and children are escaped, and whole pages that fetch nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import Final, TypeAlias

# Elements without content and end tag.
_VOID: Final = frozenset({"br", "img", "input", "meta"})


class Markup(str):
    """A text that is HTML already, so it is not escaped again."""

    __slots__ = ()


Child: TypeAlias = str | Iterable["Child"] | None


def make(tag: str, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """Make an element. Children are texts, which are escaped, elements, or lists of these; None makes nothing.

    An attribute's underscores become hyphens, and one at its end is dropped; True gives it no value, None and False
    leave it out.

    >>> make("p", "a < b", make("br"), class_="note", data_count=2, hidden=True)
    '<p class="note" data-count="2" hidden>a &lt; b<br></p>'
    """
    told = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    start = f"<{tag}{told}>"
    return Markup(start if tag in _VOID else f"{start}{joined(*children)}</{tag}>")


def joined(*children: Child) -> Markup:
    """Join children to one text, as `make` does.

    >>> joined("a & b", [make("br"), None])
    'a &amp; b<br>'
    """
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(escape(child, quote=False))
        elif child is not None:
            parts.append(joined(*child))
    return Markup("".join(parts))


@cache
def style(*names: str) -> Markup:
    """Return the style sheets of these names beside this module, without blank lines and indentation."""
    texts = ((Path(__file__).parent / f"{name}.css").read_text(encoding="utf-8") for name in names)
    lines = (line.strip() for text in texts for line in text.splitlines())
    return Markup("".join(f"{line}\n" for line in lines if line and not line.startswith("/*")))


@cache
def script(name: str) -> str:
    """Return the script of this name beside this module, without indentation and lines that are only comments."""
    text = (Path(__file__).parent / f"{name}.mjs").read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("//"))


def page(title: str, *children: Child, styles: tuple[str, ...], script: str = "") -> str:
    """Make a whole page, light and dark, whose content policy lets it fetch nothing."""
    policy = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"
    policy += "; script-src 'unsafe-inline'" if script else ""
    head = make(
        "head",
        make("meta", charset="utf-8"),
        make("meta", name="viewport", content="width=device-width, initial-scale=1"),
        make("meta", name="color-scheme", content="light dark"),
        make("meta", **{"http-equiv": "Content-Security-Policy"}, content=policy),
        make("title", title),
        make("style", style(*styles)),
    )
    body = make("body", *children, make("script", Markup(script)) if script else None)
    return f"<!doctype html>\n{make('html', head, body, lang='en')}\n"

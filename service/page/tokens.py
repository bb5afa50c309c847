"""Split the page's script into tokens, so that texts, patterns and templates can be told from code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_CODE: Final = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)
    |(?P<space>\s+)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<name>[A-Za-z_$][\w$]*)
    |(?P<number>\d[\w.]*|\.\d\w*)
    |(?P<sign>>>>=|\.\.\.|===|!==|\*\*=|<<=|>>=|>>>|&&=|\|\|=|\?\?=|=>|==|!=|<=|>=|&&|\|\||\?\?|\?\.(?!\d)|\+\+|--
        |[-+*/%&|^]=|<<|>>|\*\*|[][{}()<>;,+\-*/%&|^!~?:=.])""",
    flags=re.VERBOSE | re.DOTALL,
)
_PATTERN: Final = re.compile(r"(?P<pattern>/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/[a-z]*)")
_TEMPLATE: Final = re.compile(r"(?P<template>[`}](?:[^`\\$]|\\.|\$(?!\{))*(?:`|\$\{))", flags=re.DOTALL)

# fmt: off
KEYWORDS: Final = frozenset([
    "await", "break", "case", "catch", "class", "const", "continue", "default", "delete", "do", "else", "export",
    "extends", "finally", "for", "function", "if", "import", "in", "instanceof", "let", "new", "of", "return",
    "static", "switch", "throw", "try", "typeof", "var", "void", "while", "with", "yield",
])
# fmt: on
# A slash after a value divides; after anything else it starts a pattern.
_ENDS_VALUE: Final = frozenset({")", "]", "}", "++", "--"})
# What a brace starts follows from the token before it, where there are no labels.
_BEFORE_OBJECT: Final = frozenset(
    ["(", "[", ",", "=", "?", ":", "...", "&&", "||", "??", "return", "const", "let", "of", "in"]
)
_BEFORE_BLOCK: Final = frozenset([")", "=>", "{", "}", ";", "else", "try", "catch", "finally", "do"])
_UNKNOWN: Final = frozenset({"case", "switch"})


@dataclass(frozen=True)
class Token:
    """A piece of a script: `kind` is name, number, text, pattern, template or sign; `broken` is whether a line break
    lies before it; `inside` is the bracket around it: `(`, `[`, `object`, `block`, `template` or nothing."""

    kind: str
    text: str
    broken: bool
    inside: str


def tokens_of(script: str) -> Iterator[Token]:
    """The tokens of a script, without comments and space. A template is several tokens: its texts and the code between
    them.

    Raises:
        ValueError: a character that starts no token, a `switch`, or a brace of which the token before it
            does not tell whether it starts an object or a block.
    """
    place, broken = 0, False
    before = Token("sign", ";", broken=False, inside="")
    brackets: list[str] = []
    while place < len(script):
        rest = script[place : place + 40]
        found = _form(rest, before, brackets).match(script, place)
        if found is None or found.lastgroup is None or (found.lastgroup == "name" and found[0] in _UNKNOWN):
            raise ValueError(f"the page's script has something that is not understood: {rest!r}")
        kind, text, place = found.lastgroup, found[0], found.end()
        if kind in ("comment", "space"):
            broken = broken or "\n" in text
            continue
        if text[0] in ")]}":
            brackets.pop()
        token = Token(kind, text, broken, brackets[-1] if brackets else "")
        if kind == "template" and text.endswith("${"):
            brackets.append("template")
        elif text in ("(", "["):
            brackets.append(text)
        elif text == "{":
            brackets.append(_brace(before, rest))
        yield token
        before, broken = token, False


def _form(rest: str, before: Token, brackets: list[str]) -> re.Pattern[str]:
    """What the next token can be."""
    if rest[0] == "`" or (rest[0] == "}" and brackets[-1:] == ["template"]):
        return _TEMPLATE
    if rest[0] != "/" or rest.startswith(("//", "/*")):
        return _CODE
    divides = {
        "sign": before.text in _ENDS_VALUE,
        "name": before.text not in KEYWORDS,
        "template": before.text.endswith("`"),
    }
    return _CODE if divides.get(before.kind, True) else _PATTERN


def _brace(before: Token, rest: str) -> str:
    """What a brace starts."""
    if before.text in _BEFORE_OBJECT or before.text.endswith("${"):
        return "object"
    if before.text in _BEFORE_BLOCK:
        return "block"
    raise ValueError(f"the page's script has a brace that is not understood, after {before.text!r}: {rest!r}")

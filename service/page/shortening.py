"""Make the page's script shorter without changing what it does: no comments, little space, short names.

Everything works on tokens, so that texts, patterns and templates stay as they are. Each name that is declared outside
of all functions gets a short one wherever it stands for a variable. A local variable of the same name gets the same
short one, which changes nothing. Names of properties stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise, product
from string import ascii_letters
from typing import Final

from service.page.tokens import KEYWORDS, Token, tokens_of

# No statement starts with one of these, so a line break before one separates nothing.
_CONTINUES: Final = frozenset(
    [
        ")",
        "]",
        "}",
        ",",
        ";",
        ".",
        "?.",
        ":",
        "?",
        "&&",
        "||",
        "??",
        "=",
        "===",
        "!==",
        "==",
        "!=",
        "=>",
        "<",
        ">",
        "<=",
        ">=",
        "*",
    ]
)
# A line break after these may end a statement; after any other sign it does not.
_MAY_END: Final = frozenset([")", "]", "}", "++", "--"])
_NOTHING: Final = Token("sign", "", broken=False, inside="")


def shortened(script: str) -> str:
    """A script of one scope that does the same with fewer characters.

    Raises:
        ValueError: `tokens_of` does not understand the script.
    """
    tokens = list(tokens_of(script))
    named = list(renamed(tokens, short_names(tokens)))
    return joined(list(lean(named)))


def short_names(tokens: Sequence[Token]) -> dict[str, str]:
    """A short name for each variable that is declared outside of all brackets, the shortest for the most frequent. No
    short name occurs in the script as it is."""
    declared = {
        name.text
        for word, name in pairwise(tokens)
        if word.text in ("const", "let", "function") and not word.inside and name.kind == "name"
    }
    counts = Counter(token.text for token in tokens if token.kind == "name")
    free = chain.from_iterable(product(ascii_letters, repeat=length) for length in (1, 2, 3))
    names = ("".join(letters) for letters in free)
    unused = (name for name in names if name not in counts and name not in KEYWORDS)
    ordered = sorted(declared, key=lambda name: (-counts[name], name))
    return {name: short for name, short in zip(ordered, unused, strict=False) if len(short) < len(name)}


def renamed(tokens: Sequence[Token], names: Mapping[str, str]) -> Iterator[Token]:
    """The tokens with other names for variables."""
    for before, token, after in _with_neighbours(tokens):
        if token.kind != "name" or token.text not in names or before.text in (".", "?."):
            yield token
            continue
        short = Token(token.kind, names[token.text], token.broken, token.inside)
        if token.inside == "object" and before.text in ("{", ","):
            # The name of a property. `{ name }` stands for `{ name: name }`.
            yield token
            if after.text in (",", "}", "="):
                yield Token("sign", ":", broken=False, inside="object")
                yield short
        else:
            yield short


def lean(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens with one `const` for each run of constants, and no comma before a closing bracket."""
    # The first word of the current statement, inside each open bracket.
    first = [""]
    joins = False
    for before, token, after in _with_neighbours(tokens):
        if token.text[0] in ")]}":
            first.pop()
        if not first[-1] or _between(before, token) == "\n":
            first[-1] = token.text
        if joins:
            joins = False
        elif token.text == ";" and first[-1] == after.text == "const" and token.inside in ("", "block"):
            yield Token("sign", ",", broken=False, inside=token.inside)
            joins = True
        elif token.text != "," or after.text not in (")", "]", "}") or before.text in ("[", ","):
            yield token
        if token.text == ";" and not joins:
            first[-1] = ""
        if token.text in ("(", "[", "{") or token.text.endswith("${"):
            first.append("")


def joined(tokens: Sequence[Token]) -> str:
    """The tokens as text, with a space or a line break only where one separates."""
    return "".join(_between(before, token) + token.text for before, token, _ in _with_neighbours(tokens))


def _with_neighbours(tokens: Sequence[Token]) -> Iterator[tuple[Token, Token, Token]]:
    return zip([_NOTHING, *tokens[:-1]], tokens, [*tokens[1:], _NOTHING], strict=True)


def _between(before: Token, token: Token) -> str:
    ended = before.kind != "sign" or before.text in _MAY_END
    if token.broken and ended and token.text not in _CONTINUES and not before.text.endswith("${"):
        return "\n"
    pair = before.text[-1:] + token.text[0]
    return " " if (len(pair) == 2 and all(map(_is_of_word, pair))) or pair in ("++", "--", "//", "/*") else ""


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character in "_$"

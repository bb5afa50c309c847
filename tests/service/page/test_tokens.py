"""The tokens of the page's script."""

from __future__ import annotations

import re

import pytest

from service.page.assembly import MODULES, script_of
from service.page.tokens import tokens_of


@pytest.mark.parametrize(
    ("script", "kinds"),
    [
        ("a / b / c", "name sign name sign name"),
        ("x = /a b/g", "name sign pattern"),
        ("f(/[/\\]]/)", "name sign pattern sign"),
        ("return /a/.test(b)", "name pattern sign name sign name sign"),
        ("(a) / b", "sign name sign sign name"),
        ("`/a/`.length / 2", "template sign name sign number"),
        ("`a${/}/}b`", "template pattern template"),
        ("`a${ { b: `}` } }c`", "template sign name sign template sign template"),
        ("'// no' // yes", "text"),
        ('"\\"/*" /* a\nb */ + 1', "text sign number"),
        ("a ?.5 : b?.c", "name sign number sign name sign name"),
        ("[...a, 1e3]", "sign sign name sign number sign"),
    ],
)
def test_patterns_divisions_templates_and_comments_are_told_apart(script: str, kinds: str) -> None:
    assert " ".join(token.kind for token in tokens_of(script)) == kinds


def test_braces_start_objects_or_blocks() -> None:
    script = "const { a } = f({ b }, () => { c; }); if (d) { e; } else { g; } return { h: { i } };"
    inside = {token.text: token.inside for token in tokens_of(script) if len(token.text) == 1 and token.text.isalpha()}
    objects = {name for name, bracket in inside.items() if bracket == "object"}
    blocks = {name for name, bracket in inside.items() if bracket == "block"}
    assert (objects, blocks) == (set("abhi"), set("ceg"))


def test_line_breaks_are_kept_in_mind() -> None:
    assert [token.broken for token in tokens_of("a\nb // c\nd e")] == [False, True, True, False]


@pytest.mark.parametrize("script", ["a # b", "'open", "`open", "switch (a) { case 1: {} }", "class A { b() {} }"])
def test_what_is_not_understood_is_an_error(script: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        list(tokens_of(script))


def test_the_tokens_of_the_page_hold_all_of_its_code() -> None:
    """Nothing but space and comments lies between them."""
    rest = script_of(MODULES)
    for token in tokens_of(rest):
        rest = re.sub(r"^(?:\s+|//.*|/\*[\s\S]*?\*/)+", "", rest)
        assert rest.startswith(token.text)
        rest = rest.removeprefix(token.text)
    assert not rest.strip()

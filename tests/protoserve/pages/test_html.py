"""Elements as text: everything from outside is escaped, and a page fetches nothing."""

from __future__ import annotations

import doctest

from protoserve.pages import html
from protoserve.pages.html import Markup, joined, make, page, style


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(html).failed == 0


def test_children_and_attributes_are_escaped_once() -> None:
    name = "<script>\"R&D'"
    inner = make("b", name, title=name)
    assert inner == '<b title="&lt;script&gt;&quot;R&amp;D&#x27;">&lt;script&gt;"R&amp;D\'</b>'
    assert make("p", [inner, None], hidden=False) == f"<p>{inner}</p>"
    assert isinstance(joined(inner), Markup)


def test_a_page_without_a_script_allows_none() -> None:
    text = page("A & B", make("main"), styles=("page",))
    assert text.startswith("<!doctype html>") and "<title>A &amp; B</title>" in text
    assert "script-src" not in text and "default-src &#x27;none&#x27;" in text
    assert "script-src" in page("A", styles=("page",), script="let a = 1 < 2;")
    assert "let a = 1 < 2;" in page("A", styles=("page",), script="let a = 1 < 2;")


def test_style_sheets_fetch_nothing() -> None:
    text = style("page", "answer", "index")
    assert "url(" not in text and "@import" not in text and "\n\n" not in text

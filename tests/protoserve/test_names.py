"""Names that come from others: what a terminal shows of them, and which look the same."""

from __future__ import annotations

import pytest

from protoserve.names import is_plain, look, normal, one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Crème 绿 🍏", "plain Crème 绿 🍏"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x9b31mred", "\\x9b31mred"),
        ("a\rb\x7f\x00", "a\\x0db\\x7f\\x00"),
        ("fe\u202egpj.exe", "fe\\u202egpj.exe"),
        ("line\u2028end", "line\\u2028end"),
        ("caf\udce9.jpg", "caf\\xe9.jpg"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown, "escaping twice changes nothing"


def test_one_line_shows_line_breaks_too() -> None:
    assert one_line("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"


def test_a_name_without_control_characters_is_plain() -> None:
    assert is_plain("Granny Smith (grün) 绿")
    assert not any(map(is_plain, ("a\nb", "a\tb", "\x1b[0m", "a\u2028b", "caf\udce9")))


def test_the_normal_form_is_composed() -> None:
    assert normal("Cre\u0300me") == "Cr\u00e8me" == normal("Cr\u00e8me")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Crème", "Cre\u0300me"),
        ("Apple", "apple"),
        ("Straße", "STRASSE"),
        ("Red Apple", "Red\u00a0Apple"),
        ("Red Apple", "Red  Apple"),
        ("Apple", "App\u200ble"),
        ("Apple", "\ufeffApple"),
        ("Ⅳ", "IV"),
    ],
)
def test_names_that_look_alike_have_one_look(one: str, other: str) -> None:
    assert look(one) == look(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Gala", "Fuji"), ("Crème", "Creme"), ("Apple 1", "Apple 2"), ("a b", "ab")]
)
def test_other_names_have_another_look(one: str, other: str) -> None:
    assert look(one) != look(other)

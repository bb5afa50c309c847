"""Text in figures: any script that a font of the machine has, and a word where none has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw

from protoserve.cli import lettering
from protoserve.cli.lettering import FONT, Pen, undrawable
from protoserve.errors import InputError


@pytest.fixture(autouse=True)
def only_the_chosen_font(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No fonts but the built-in one and that of the variable."""
    monkeypatch.setattr(lettering, "_FOLDERS", ())
    monkeypatch.delenv(FONT, raising=False)
    lettering._candidates.cache_clear()
    lettering._font_file.cache_clear()
    yield
    lettering._candidates.cache_clear()
    lettering._font_file.cache_clear()


@pytest.fixture
def wide_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """A font with Greek, Cyrillic, Hebrew and Arabic, and without Chinese."""
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setenv(FONT, str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"))


def drawn(text: str, width: float | None = None) -> Image.Image:
    picture = Image.new("RGB", (400, 40))
    Pen(ImageDraw.Draw(picture)).write((5, 5), text, 20, (255, 255, 255), width)
    return picture


def same(one: Image.Image, other: Image.Image) -> bool:
    return ImageChops.difference(one, other).getbbox() is None


def test_without_a_font_accents_are_dropped_and_other_letters_become_question_marks() -> None:
    assert same(drawn("Crème brûlée"), drawn("Creme brulee"))
    assert same(drawn("Ябло"), drawn("????"))
    assert undrawable(["Apple", "Crème", "Яблоко?"]) == "Яблоко?"
    assert undrawable(["Why?"]) is None


@pytest.mark.usefixtures("wide_font")
@pytest.mark.parametrize("text", ["Яблоко", "Μήλο", "תפוח", "تفاح", "Crème"])
def test_a_line_is_set_in_a_font_that_has_its_letters(text: str) -> None:
    assert undrawable([text]) is None
    picture = drawn(text)
    assert picture.getbbox() is not None
    assert not same(picture, drawn("?" * len(text)))
    assert not same(picture, drawn(text[::-1]))


@pytest.mark.usefixtures("wide_font")
def test_letters_that_the_font_lacks_are_named() -> None:
    assert undrawable(["Яблоко", "苹果"]) == "苹果"
    assert same(drawn("苹果"), drawn("??"))


@pytest.mark.usefixtures("wide_font")
def test_a_long_line_keeps_its_end() -> None:
    short = drawn("Пища › Фрукты › Яблоко", width=120)
    bounds = short.getbbox()
    assert bounds is not None and bounds[2] <= 5 + 120


def test_a_file_that_is_no_font_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_bytes(b"no font")
    monkeypatch.setenv(FONT, str(tmp_path / "font.ttf"))
    with pytest.raises(InputError, match=r"PROTOSERVE_FONT=.*font\.ttf: not a font file"):
        drawn("Яблоко")

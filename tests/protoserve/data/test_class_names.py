"""One form of a class's name, and two names that people can't tell apart."""

from __future__ import annotations

import pytest

from protoserve.data.class_names import class_name, hint, spelt
from protoserve.errors import TaxonomyError


def test_a_name_may_come_again_but_not_its_look_alike() -> None:
    siblings: dict[str, str] = {}
    assert class_name("Cre\u0300me", siblings, "here") == "Cr\u00e8me"
    assert class_name("Cre\u0300me", siblings, "here") == "Cr\u00e8me"
    assert class_name("Creme", siblings, "here") == "Creme"
    with pytest.raises(TaxonomyError, match=r"^there: 'creme' looks like 'Creme'; rename one"):
        class_name("creme", siblings, "there")


@pytest.mark.parametrize(
    ("name", "twin", "said"),
    [
        ("Apple", "apple", "'Apple' looks like 'apple'"),
        ("Red\u00a0Apple", "Red Apple", "'Red\\xa0Apple' looks like 'Red Apple'"),
        ("Cr\u00e8me", "Cre\u0300me", "('Cr\\xe8me' and 'Cre\\u0300me')"),
    ],
)
def test_the_difference_can_be_seen(name: str, twin: str, said: str) -> None:
    assert said in spelt(name, twin)


def test_an_unknown_class_gets_its_look_alike_or_the_nearest() -> None:
    known = ["Fruit/Apple", "Garlic"]
    assert hint("fruit/Apple", known) == "; 'fruit/Apple' looks like 'Fruit/Apple': write it as in train"
    assert hint("Fruit/Aple", known) == "; did you mean 'Fruit/Apple'?"
    assert hint("zzz", known) == ""

"""The chain of a bundle's curation: what holds after it, and what may follow it."""

from __future__ import annotations

import pytest

from protoserve.bundle.curation import CurationLink, check_link, check_prototype, curation_of, told
from protoserve.errors import InputError


def link(
    disabled: list[int] | None = None,
    required: list[int] | None = None,
    restored: list[int] | None = None,
    *,
    refitted: bool = False,
    reason: str = "on the wall",
) -> CurationLink:
    return CurationLink(
        before="sha256:0",
        disabled=disabled or [],
        required=required or [],
        restored=restored or [],
        refitted=refitted,
        reason=reason,
        by="Ann",
        at="2026-01-31T10:00:00Z",
    )


def test_a_chain_is_followed_from_the_oldest_link() -> None:
    links = [link([1, 2]), link(required=[4]), link(restored=[2, 4]), link([2], reason="after all")]
    found = curation_of(links)
    assert sorted(found.off) == [1, 2] and not found.required
    assert found.off[1].reason == "on the wall" and found.off[2].reason == "after all"


@pytest.mark.parametrize(
    ("following", "message"),
    [
        (link(), "nothing to do"),
        (link([9]), r"no prototype 9; they are numbered from 0 to 6"),
        (link([-1]), "no prototype -1"),
        (link([3], [3]), "prototype 3 is named twice"),
        (link([1]), r"--disable 1: it is off already, by Ann on 2026-01-31: 'on the wall'"),
        (link([4]), r"--disable 4: it is required, by Ann .*--restore it first"),
        (link(required=[4]), "--require 4: it is required already"),
        (link(required=[1]), "--require 1: it is off, by Ann .*--restore it first"),
        (link(restored=[3]), "--restore 3: it is neither off nor required; only 1, 4 can be restored"),
    ],
)
def test_a_link_that_contradicts_the_chain_says_who_made_it_so(following: CurationLink, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_link(following, [link([1]), link(required=[4])], 7)


@pytest.mark.parametrize("following", [link([3]), link(required=[3]), link(restored=[1, 4]), link(refitted=True)])
def test_a_link_may_follow(following: CurationLink) -> None:
    check_link(following, [link([1]), link(required=[4])], 7)


def test_an_unknown_prototype_has_its_nearest_named() -> None:
    with pytest.raises(InputError, match=r"no prototype 112; .*did you mean '12'"):
        check_prototype(112, 40)


def test_a_link_is_told_in_one_line() -> None:
    assert told(link(reason="it's the wall")) == 'by Ann on 2026-01-31: "it\'s the wall"'

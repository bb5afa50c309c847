"""The curation of a bundle: which prototypes people have switched off or insist on, who did so, when and why.

A manifest holds it as a chain of links, the oldest first. Nothing is ever taken out of it: to switch a prototype on
again is one more link.

- *Off*: the prototype counts as usual whatever a picture shows, so its contribution to every node is 0.
- *Required*: a picture is known as the prototype's node only where the prototype is more similar than usual. No later
  link may switch it off, and no refit changes its weights, until it is restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from protoserve.bundle.plain_text import PlainText
from protoserve.errors import InputError, nearest
from protoserve.schema import Contract


class CurationAccuracy(Contract):
    """The accuracies on a `split` of `images` pictures, level → share in [0, 1], before and after a link."""

    split: PlainText
    images: int = Field(ge=1)
    before: dict[str, float]
    after: dict[str, float]


class CurationLink(Contract):
    """One act of curation: what was done to which prototypes of which version of the bundle."""

    before: PlainText = Field(description="the version of the bundle that this one was made from")
    disabled: list[int] = Field(default=[], description="prototypes that are off from now on")
    required: list[int] = Field(default=[], description="prototypes that are required from now on")
    restored: list[int] = Field(default=[], description="prototypes that were off or required, and are neither now")
    refitted: bool = Field(default=False, description="whether the last layers learned anew, without what is off")
    reason: PlainText
    by: PlainText
    at: PlainText = Field(description="the time in UTC, ISO 8601")
    accuracy: CurationAccuracy | None = Field(default=None, description="null where no pictures were given")


@dataclass(frozen=True)
class Curation:
    """What holds after a chain of links: prototype → the link that switched it `off`, or that `required` it."""

    off: Mapping[int, CurationLink]
    required: Mapping[int, CurationLink]


def curation_of(links: Sequence[CurationLink]) -> Curation:
    """Follow a chain of links, oldest first.

    >>> first = CurationLink(before="sha256:1", disabled=[3, 5], reason="on the wall", by="Ann", at="2026-01-01")
    >>> second = CurationLink(before="sha256:2", restored=[5], reason="a mistake", by="Ben", at="2026-01-02")
    >>> list(curation_of([first, second]).off)
    [3]
    """
    off: dict[int, CurationLink] = {}
    required: dict[int, CurationLink] = {}
    for link in links:
        for prototype in link.restored:
            off.pop(prototype, None)
            required.pop(prototype, None)
        off |= dict.fromkeys(link.disabled, link)
        required |= dict.fromkeys(link.required, link)
    return Curation(off, required)


def gone_by_refit(links: Sequence[CurationLink]) -> frozenset[int]:
    """Return the prototypes that are off and that the last layers were refitted without, so that they have no weights.

    >>> first = CurationLink(before="sha256:1", disabled=[3, 5], refitted=True, reason="", by="Ann", at="2026-01-01")
    >>> second = CurationLink(before="sha256:2", disabled=[6], restored=[5], reason="", by="Ann", at="2026-01-02")
    >>> sorted(gone_by_refit([first, second]))
    [3]
    """
    gone: set[int] = set()
    for end, link in enumerate(links, start=1):
        gone -= set(link.restored)
        if link.refitted:
            gone |= set(curation_of(links[:end]).off)
    return frozenset(gone)


def check_link(link: CurationLink, links: Sequence[CurationLink], prototypes: int) -> None:
    """Raise InputError unless `link` can follow the chain `links` of a bundle with so many `prototypes`.

    It must change something, name only prototypes that exist, and each once; it may not switch off what is off or
    required, require what is off or required, or restore what is neither.
    """
    state = curation_of(links)
    named = [*link.disabled, *link.required, *link.restored]
    if not named and not link.refitted:
        raise InputError("nothing to do: give --disable, --require, --restore, --from or --refit")
    for prototype in named:
        check_prototype(prototype, prototypes)
    if twice := sorted({prototype for prototype in named if named.count(prototype) > 1}):
        raise InputError(f"prototype {twice[0]} is named twice; name it in one of --disable, --require and --restore")
    for prototype in link.disabled:
        if prototype in state.off:
            raise InputError(f"--disable {prototype}: it is off already, {told(state.off[prototype])}; leave it out")
        if prototype in state.required:
            raise InputError(
                f"--disable {prototype}: it is required, {told(state.required[prototype])}; --restore it first"
            )
    for prototype in link.required:
        if prototype in state.required:
            raise InputError(
                f"--require {prototype}: it is required already, {told(state.required[prototype])}; leave it out"
            )
        if prototype in state.off:
            raise InputError(f"--require {prototype}: it is off, {told(state.off[prototype])}; --restore it first")
    for prototype in link.restored:
        if prototype not in state.off and prototype not in state.required:
            changed = sorted({*state.off, *state.required})
            known = f"; only {', '.join(map(str, changed))} can be restored" if changed else ", as are all others"
            raise InputError(f"--restore {prototype}: it is neither off nor required{known}")


def check_prototype(prototype: int, count: int) -> None:
    """Raise InputError, which names the nearest one, unless a model of `count` prototypes has this `prototype`.

    >>> check_prototype(3, 4)
    """
    if not 0 <= prototype < count:
        hint = nearest(str(prototype), map(str, range(count)))
        raise InputError(f"no prototype {prototype}; they are numbered from 0 to {count - 1}{hint}")


def told(link: CurationLink) -> str:
    """Say who acted, when and why, in one line.

    >>> told(CurationLink(before="sha256:1", disabled=[3], reason="on the wall", by="Ann", at="2026-01-01T10:00:00Z"))
    "by Ann on 2026-01-01: 'on the wall'"
    """
    return f"by {link.by} on {link.at[:10]}: {link.reason!r}"

"""The index of many explained pictures: a thumbnail and the headline of each, linked to its page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from protoserve.names import visible
from protoserve.pages.html import Markup, make, page
from protoserve.pages.words import Extent


@dataclass(frozen=True)
class Explained:
    """A picture and the `file` of its page, relative to the index; `thumbnail` is a `data:` URI."""

    name: str
    file: str
    found: Extent
    thumbnail: str


def index_page(title: str, entries: Sequence[Explained], failures: Sequence[tuple[str, str]]) -> str:
    """Make the index; `failures` are the names of pictures that can't be read, each with the reason."""
    ends = {
        "go all the way": sum(entry.found.sure for entry in entries),
        "stop early or are in doubt": sum(not entry.found.sure and entry.found.levels > 0 for entry in entries),
        "say nothing": sum(not entry.found.levels for entry in entries),
        "can't be read": len(failures),
    }
    told = ", ".join(f"{count} {words}" for words, count in ends.items() if count)
    count = len(entries) + len(failures)
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    broken = make("ul", [make("li", make("b", visible(name)), f" {visible(reason)}") for name, reason in failures])
    return page(
        visible(title),
        make(
            "main",
            make("h1", visible(title)),
            make("p", f"{pictures}: {told}.", class_="soft"),
            make("ul", [_card(entry) for entry in entries], class_="answers"),
            (make("h2", "Not readable"), broken) if failures else None,
        ),
        styles=("page", "index"),
    )


def _card(entry: Explained) -> Markup:
    kind = "sure" if entry.found.sure else "part" if entry.found.levels else "none"
    return make(
        "li",
        make(
            "a",
            make("img", src=entry.thumbnail, alt="", loading="lazy"),
            make("b", entry.found.title, class_=kind),
            make("span", entry.found.reason, class_="why"),
            make("span", visible(entry.name), class_="soft name"),
            href=quote(os.fsencode(entry.file)),
        ),
    )

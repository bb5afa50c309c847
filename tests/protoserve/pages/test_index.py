"""The index of explained pictures."""

from __future__ import annotations

from protoserve.pages.index import Explained, index_page
from protoserve.pages.words import Extent

SURE = Extent(2, True, "Apple", "99.0 % sure")
PART = Extent(1, False, "Fruit", "Stops at Fruit: below 95 %. The closest is Apple, 60.0 %.")


def test_every_picture_has_its_headline_and_its_link() -> None:
    entries = [
        Explained("a <1>.jpg", "a <1>.jpg.html", SURE, "data:,"),
        Explained("deep/b#2.jpg", "deep/b#2.jpg.html", PART, "data:,"),
    ]
    html = index_page("photos by toy", entries, [("torn.jpg", "is damaged")])
    assert "3 pictures: 1 go all the way, 1 stop early or are in doubt, 1 can't be read." in html
    assert 'href="a%20%3C1%3E.jpg.html"' in html and 'href="deep/b%232.jpg.html"' in html
    assert "a &lt;1&gt;.jpg" in html and "Stops at Fruit: below 95 %" in html
    assert "torn.jpg" in html and "is damaged" in html
    assert "Not readable" not in index_page("photos", entries, []) and "<script" not in html

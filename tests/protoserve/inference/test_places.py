"""Places: a prototype's box in the sender's picture, and its training patch."""

from pathlib import Path

from protoserve.inference.places import Places
from tests.protoserve.inference.random_heads import COLUMNS, GEOMETRY, ROWS, random_head


def test_a_place_has_the_box_of_its_cell_and_the_source_of_its_prototype(tmp_path: Path) -> None:
    table = random_head(1, tmp_path).table
    place = Places(table, GEOMETRY, lambda prototype: f"pictures/{prototype}").of(1, COLUMNS + 2)
    width, height = GEOMETRY.picture_width / COLUMNS, GEOMETRY.picture_height / ROWS
    assert place.box == (2 * width, height, 3 * width, 2 * height)
    assert place.source.image == "train/1.jpg" and place.source.href == "pictures/1"
    assert place.member is None and place.cells == table.cells[0]


def test_another_address_of_the_same_prototype_is_told(tmp_path: Path) -> None:
    table = random_head(1, tmp_path).table
    hrefs = [None, "a/1", "b/1", "b/1", None]
    for href in hrefs:
        places = Places(table, GEOMETRY, None if href is None else lambda prototype, href=href: href)  # type: ignore[misc]
        assert places.of(1, 0).source.href == href
        assert places.of(1, 0) == places.of(1, 0)

"""The orientation and the tags of a directory are those that Pillow reads, and damage is never an error."""

from __future__ import annotations

import io
import random
import struct

import pytest
from PIL import Image, TiffImagePlugin

from protoserve.images.tiff import orientation_of, read_directory


def directory(order: str, entries: list[tuple[int, int, int, bytes]]) -> bytes:
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return mark + struct.pack(f"{order}IH", 8, len(entries)) + body + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_in_either_byte_order(order: str, orientation: int) -> None:
    assert orientation_of(directory(order, [(274, 3, 1, struct.pack(f"{order}H", orientation))])) == orientation


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"Exif\0\0",
        bytes(50),
        b"II*\0\xff\xff\xff\xff",
        directory("<", []),
        directory("<", [(274, 3, 1, b"\x09\0")]),
        directory("<", [(274, 3, 1, b"\0\0")]),
        directory("<", [(274, 2, 2, b"6\0")]),
        directory("<", [(274, 3, 0, b"\x06\0")]),
        directory("<", [(274, 3, 9, b"\xff\xff\xff\xff")]),
    ],
)
def test_what_can_not_be_read_is_upright(exif: bytes) -> None:
    assert orientation_of(exif) == 1


def test_random_damage_raises_nothing_but_what_is_documented() -> None:
    dice = random.Random(3)
    whole = directory("<", [(256, 4, 1, b"\x08"), (257, 4, 1, b"\x08"), (273, 4, 90, b"\x10"), (274, 3, 1, b"\x03")])
    for _ in range(500):
        damaged = bytearray(whole[: dice.randrange(8, len(whole) + 1)])
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        assert 1 <= orientation_of(bytes(damaged)) <= 8


@pytest.mark.parametrize("big", [False, True])
def test_the_tags_of_a_file_are_those_that_pillow_reads(big: bool) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (70, 30)).save(stream, "TIFF", big_tiff=big, compression="tiff_lzw", tiffinfo={278: 7})
    tags = read_directory(stream.getvalue())
    with Image.open(stream) as picture:
        assert isinstance(picture, TiffImagePlugin.TiffImageFile)
        expected = picture.tag_v2
        for tag in (256, 257, 259, 262, 277, 278):
            assert tags.value(tag) == expected[tag]
        assert (tags.value(258), tags.value(273)) == (expected[258][0], expected[273][0])
        assert tags.count(273) == len(expected[273]) == 5
    assert (tags.value(9999), tags.count(9999)) == (None, 0)


def test_a_directory_of_more_tags_than_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="60000 tags"):
        read_directory(b"II*\0" + struct.pack("<IH", 8, 60_000) + bytes(60_000 * 12))

"""Reads the first directory of a TIFF file or of EXIF data, which has the same form, without reading what it refers to.

Pillow's own reader loads every tag, and takes the orientation from XMP where EXIF has none. Browsers don't.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ORIENTATION: Final = 274
_MOST_TAGS: Final = 4096
# struct's codes of the types of whole numbers: byte, short, long, 64-bit long.
_NUMBERS: Final[Mapping[int, str]] = {1: "B", 3: "H", 4: "I", 16: "Q"}


@dataclass(frozen=True)
class Directory:
    """The tags of a directory: type, count and the position of each one's values in the file."""

    data: bytes
    order: str
    entries: Mapping[int, tuple[int, int, int]]

    def value(self, tag: int) -> int | None:
        """Return the first value of a tag; None if it is missing or not a whole number."""
        kind, count, position = self.entries.get(tag, (0, 0, 0))
        if kind not in _NUMBERS or not count:
            return None
        code = f"{self.order}{_NUMBERS[kind]}"
        if position + struct.calcsize(code) > len(self.data):
            return None
        return int(struct.unpack_from(code, self.data, position)[0])

    def size_of(self, tag: int) -> int:
        """Return how many tags the directory has that a tag refers to, 0 if it refers to none."""
        start = self.value(tag)
        if start is None or start + 2 > len(self.data):
            return 0
        return int(struct.unpack_from(f"{self.order}H", self.data, start)[0])

    def count(self, tag: int) -> int:
        """Return the number of a tag's values, 0 if it is missing."""
        return self.entries.get(tag, (0, 0, 0))[1]


def read_directory(data: bytes) -> Directory:
    """Read the first directory. Raises ValueError or struct.error if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no byte order")
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    # BigTIFF has 64-bit offsets.
    big = version == 43
    (start,) = struct.unpack_from(f"{order}Q", data, 8) if big else struct.unpack_from(f"{order}I", data, 4)
    head, entry = (f"{order}Q", f"{order}HHQ8s") if big else (f"{order}H", f"{order}HHI4s")
    (count,) = struct.unpack_from(head, data, start)
    position, width = start + struct.calcsize(head), struct.calcsize(entry)
    entries: dict[int, tuple[int, int, int]] = {}
    if count > _MOST_TAGS:
        raise ValueError(f"{count} tags")
    for index in range(count):
        at = position + index * width
        if at + width > len(data):
            break
        tag, kind, values, inline = struct.unpack_from(entry, data, at)
        size = values * struct.calcsize(_NUMBERS.get(kind, "B"))
        offset = at + width - len(inline)
        if size > len(inline):
            (offset,) = struct.unpack(f"{order}{'Q' if big else 'I'}", inline)
        entries[tag] = (kind, values, offset)
    return Directory(data, order, entries)


def orientation_of(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that EXIF data states (from its byte order on); 1 if it can't be read.

    Like browsers, this ignores metadata that is damaged.
    """
    try:
        value = read_directory(exif).value(ORIENTATION)
    except (ValueError, struct.error):
        return 1
    return value if value is not None and 1 <= value <= 8 else 1

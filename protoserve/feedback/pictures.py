"""A folder of pictures that people gave feedback on, each named by the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from protoserve.data.folders import find_pictures
from protoserve.feedback.lines import FullError, keeping
from protoserve.files import DRAFT, file_hash, new_file
from protoserve.images.signatures import format_of

# How files of other formats are named: as the format, in small letters.
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "HEIF": "heic"}


def keep_picture(folder: Path, content: bytes, *, limit: int | None = None) -> str:
    """Keep an encoded picture durably, once; returns its SHA-256 in hexadecimal.

    Raises FullError where the folder's files would exceed `limit` bytes or the disk is full, and InputError where the
    folder can't be written.
    """
    name = hashlib.sha256(content).hexdigest()
    kind = format_of(content) or "bin"
    file = folder / f"{name}.{_SUFFIXES.get(kind, kind.lower())}"
    if file.exists():
        return name
    if limit is not None and _size(folder) + len(content) > limit:
        raise FullError(f"{folder}: would exceed {limit:,} bytes; move pictures away")
    with keeping(file), new_file(file, durable=True) as draft:
        draft.write_bytes(content)
    return name


def find_by_hash(folder: Path, wanted: Collection[str]) -> dict[str, Path]:
    """Find pictures by the SHA-256 of their bytes, in a folder and below it, whatever their names.

    Every picture is read once; of equal ones, the first by name counts. Raises InputError for a loop of links.
    """
    found: dict[str, Path] = {}
    for file in find_pictures(folder).files:
        # A link to nothing is a picture to others.
        if file.is_file():
            digest = file_hash(file)
            if digest in wanted:
                found.setdefault(digest, file)
    return found


def _size(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if not entry.name.startswith(DRAFT))

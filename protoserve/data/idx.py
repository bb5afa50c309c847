"""IDX files, the format of MNIST (http://yann.lecun.com/exdb/mnist) and similar data sets: one array per split.

A data set is a folder of files with the usual names, gzipped or not: `train-images-idx3-ubyte`,
`train-labels-idx1-ubyte`, and `t10k-…` for the test split.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError

PREFIXES: Final = {"train": "train", "test": "t10k"}
_KINDS: Final = {"images": "idx3", "labels": "idx1"}
_UNSIGNED_BYTE: Final = 0x08
_GZIP: Final = b"\x1f\x8b"
# The most bytes that a header may announce. It is more than any data set kept in memory, so more means damage.
_MAX_BYTES: Final = 1 << 33


def holds_idx(root: Path) -> bool:
    """Return whether a folder is a data set of IDX files."""
    return _find(root, "train", "images") is not None


def holds_idx_split(root: Path, split: str) -> bool:
    """Return whether a data set of IDX files has the split, `train` or `test`."""
    return split in PREFIXES and _find(root, split, "images") is not None


def read_idx_split(root: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the pictures uint8 [images, rows, columns] and labels uint8 [images] of `train` or `test`.

    Raises InputError for a file that is missing, damaged or not an IDX file of bytes, and if the numbers of labels and
    pictures differ.
    """
    if split not in PREFIXES:
        raise InputError(f"{root}: no split {split!r}; a data set of IDX files has {', '.join(PREFIXES)}")
    images_file, labels_file = _required(root, split, "images"), _required(root, split, "labels")
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_file} holds {len(images)} pictures and {labels_file.name} {len(labels)} labels; "
            "take both from the same data set"
        )
    if not images.size:
        raise InputError(f"{images_file}: holds no pictures")
    return images, labels


def read_idx_labels(root: Path, split: str) -> NDArray[np.uint8]:
    """Read only the labels of a split, uint8 [images]."""
    return read_idx(_required(root, split, "labels"), 1)


def read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the array of unsigned bytes in an IDX file, gzipped or plain.

    The header consists of two zero bytes, the type 8 (unsigned byte), the number of dimensions, and their sizes as
    32-bit big-endian integers. Raises InputError if the file can't be read, has another type or not `dimensions`
    dimensions, or contains fewer or more bytes than its header announces.
    """
    try:
        with file.open("rb") as plain:
            zipped = plain.read(2) == _GZIP
        with gzip.open(file) if zipped else file.open("rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            shape = _shape(file, head, dimensions)
            # Reading one byte more than announced reveals a file that is too long without reading all of it.
            content = stream.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: can't read it ({error}); download it again") from error
    if len(content) != math.prod(shape):
        more = "more" if len(content) > math.prod(shape) else f"{len(content):,}"
        raise InputError(
            f"{file}: its header announces {' × '.join(map(str, shape))} bytes, but it holds {more}; download it again"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _shape(file: Path, head: bytes, dimensions: int) -> tuple[int, ...]:
    if len(head) < 4 or head[:2] != b"\0\0":
        raise InputError(f"{file}: starts with {head[:4].hex(' ') or 'nothing'}, so it is not an IDX file")
    if head[2] != _UNSIGNED_BYTE or head[3] != dimensions:
        raise InputError(
            f"{file}: holds values of type {head[2]} in {head[3]} dimensions; expected type {_UNSIGNED_BYTE} (unsigned "
            f"byte) in {dimensions}"
        )
    if len(head) < 4 + 4 * dimensions:
        raise InputError(f"{file}: ends within its header; download it again")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    if math.prod(shape) > _MAX_BYTES:
        raise InputError(f"{file}: its header announces {' × '.join(map(str, shape))} bytes; the file is damaged")
    return shape


def _find(root: Path, split: str, part: str) -> Path | None:
    kind = _KINDS[part]
    for separator in "-.":
        for suffix in (".gz", ""):
            file = root / f"{PREFIXES[split]}-{part}{separator}{kind}-ubyte{suffix}"
            if file.is_file():
                return file
    return None


def _required(root: Path, split: str, part: str) -> Path:
    file = _find(root, split, part)
    if file is None:
        raise InputError(
            f"{root}: {PREFIXES[split]}-{part}-{_KINDS[part]}-ubyte.gz is missing; put it into the same folder"
        )
    return file

"""Reads what decoding a picture will cost from its headers, before anything is decoded.

Pillow and the libraries below it allocate by what headers state and work through whatever a file holds. Each reader
here walks one format's structure in bounded time and refuses structure that no camera or editor writes. The costs are
upper bounds; `tests/protoserve/images/test_headers.py` measures the real ones against them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from protoserve.errors import ImageError
from protoserve.images.tiff import Directory, orientation_of, read_directory

# Cameras and editors write about ten scans; optimisers for the web at most a few dozen.
MAX_SCANS: Final = 100
# Segments, chunks or blocks before the pixels: Pillow reads each in a loop of Python.
MAX_PARTS: Final = 20_000
_MAX_JUNK: Final = 65_536
# Two bytes for each coefficient, kept until the last scan.
_BLOCK_BYTES: Final = 128
# Seconds of CPU on a slow core (a busy virtual one), for each of the following.
_PER_PIXEL: Final[Mapping[str, float]] = {"PNG": 200e-9, "WEBP": 200e-9, "GIF": 60e-9, "BMP": 25e-9, "TIFF": 120e-9}
_PER_BYTE: Final = 60e-9
_PER_BLOCK, _PER_BLOCK_AND_SCAN = 1.5e-6, 0.12e-6
_PER_RLE_PIXEL, _PER_RLE_BYTE = 0.6e-6, 2e-6
_PER_STRIP: Final = 60e-6
_PER_PART: Final = 20e-6
# Each strip and each tag is an object of Python in Pillow.
_STRIP_BYTES: Final = 600
# Tables, frames and Photoshop's blocks, which Pillow parses in loops of Python.
_PARSED_SEGMENTS: Final = frozenset({0xED, 0xDB, 0xC4, *range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xD0)})
_PER_PARSED_BYTE: Final = 1e-6
_PER_COPIED_BYTE: Final = 1e-9
# A compressed text of a PNG.
_PER_TEXT, _TEXT_BYTES = 12e-3, 1_100_000
# Decoders without a bound of ours: AVIF and HEIC, JPEG 2000, rare compressions of TIFF.
_PER_RARE_PIXEL, _RARE_BYTES_PER_PIXEL = 2e-6, 32
_ISPE: Final = re.compile(rb"ispe\0\0\0\0(.{8})", re.S)
_ENTROPY_END: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# JPEG inside TIFF (7) may be of many scans.
_PLAIN_TIFF: Final = frozenset({1, 2, 3, 4, 5, 8, 32773, 32946})
# Directories that Pillow reads beside a TIFF's own: of EXIF, GPS, interoperability.
_TAG_BYTES, _MOST_TAGS = 12, 65_535
_SUBDIRECTORIES: Final = (34665, 34853, 40965)
# Without loss, WebP may have a set of code tables for each block of 4 × 4 pixels, in three bytes or more of the file.
_TABLE_BYTES, _MOST_TABLES, _LEAST_CODE = 6000, 65_536, 3
_LOSSLESS_CHUNKS: Final = frozenset({b"VP8L", b"ALPH", b"ANMF"})
_BOUNDED_TABLES: Final = 32_000_000
# What every picture takes: the module of its format, its colour profile.
_PER_PICTURE: Final = 5e-3


@dataclass(frozen=True)
class Header:
    """What a picture's headers state: its format, its size as stored (in pixels, before orientation), the EXIF
    orientation (1 to 8), and upper bounds for what decoding takes.

    `memory` is in bytes and includes one whole decoded picture; `seconds` are of one core. `fixed` is the part of
    `memory` that decoding at a reduced size does not save. `bounded` is False where a format's decoder has limits
    that we don't know.
    """

    format: str
    width: int
    height: int
    memory: int
    seconds: float
    orientation: int = 1
    fixed: int = 0
    bounded: bool = True

    @property
    def pixels(self) -> int:
        """The number of pixels of the stored picture."""
        return self.width * self.height


def read_header(data: bytes | memoryview, kind: str, name: str = "the image") -> Header:
    """Read the header of a picture of the format `kind`, one of `formats.PICTURE_FORMATS`.

    Raises ImageError: `broken_image` if the headers are damaged, `image_too_large` for structure that would cost far
    more than the picture is worth.
    """
    try:
        header = _READERS[kind](bytes(data))
        return replace(header, seconds=header.seconds + _PER_PICTURE)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(f"{name} is damaged or truncated; send it again", "broken_image") from error
    except _Excess as error:
        raise ImageError(f"{name} {error}", "image_too_large") from None


class _Excess(Exception):
    """Structure beyond what any camera writes; the message follows the picture's name."""


def _count(parts: int, what: str) -> None:
    if parts > MAX_PARTS:
        raise _Excess(f"has more than {MAX_PARTS:,} {what}; save it again with an image editor")


def _read_jpeg(data: bytes) -> Header:
    position, junk, segments, scans, orientation = 2, 0, 0, 0, 0
    exif = 0
    # The seconds that Pillow takes for segments alone.
    parsing = 0.0
    frame: tuple[int, int, int, list[int]] | None = None
    while True:
        found = data.find(b"\xff", position)
        if found < 0 or found + 2 > len(data):
            break
        junk += found - position
        marker = data[found + 1]
        position = found + 1 if marker == 0xFF else found + 2
        if marker in (0x00, 0xFF):
            junk += 1
        if junk > _MAX_JUNK:
            raise _Excess("has bytes between its segments; save it again with an image editor")
        if marker == 0xD9:
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            continue
        segments += 1
        _count(segments, "segments")
        if position + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, position)
        segment = data[position + 2 : position + length]
        position += max(length, 2)
        parsing += _PER_PART + (_PER_PARSED_BYTE * length if marker in _PARSED_SEGMENTS else 0.0)
        if marker == 0xE1 and segment.startswith(b"Exif\0"):
            orientation = orientation or orientation_of(segment[6:])
            # Pillow appends each to a copy of those before it.
            exif += length
            parsing += _PER_COPIED_BYTE * exif + _PER_PARSED_BYTE * length
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", segment, 1)
            factors = [segment[7 + 3 * index] for index in range(components)]
            frame = (marker, width, height, factors)
        elif marker == 0xDA:
            if frame is None:
                raise ValueError("a scan without a frame")
            scans += 1
            if scans > MAX_SCANS:
                raise _Excess(f"is a JPEG of more than {MAX_SCANS} scans; save it again with an image editor")
            if frame[0] in (0xC0, 0xC1) and segment[0] == len(frame[3]):
                # A sequential scan of all components is the last one that a decoder reads.
                break
            following = _ENTROPY_END.search(data, position)
            if following is None:
                break
            position = following.start()
    if frame is None:
        raise ValueError("no frame")
    kept = len(data) + exif + _STRIP_BYTES * min(exif // _TAG_BYTES, _MOST_TAGS)
    return _jpeg_cost(*frame, scans, parsing + _PER_BYTE * len(data), kept, orientation or 1)


def _jpeg_cost(
    marker: int,
    width: int,
    height: int,
    factors: list[int],
    scans: int,
    parsing: float,
    kept: int,
    orientation: int,
) -> Header:
    across = max((factor >> 4 for factor in factors), default=0)
    down = max((factor & 15 for factor in factors), default=0)
    if not 1 <= across <= 4 or not 1 <= down <= 4:
        raise ValueError("sampling factors out of range")
    units = (-(-width // (8 * across)) + 1) * (-(-height // (8 * down)) + 1)
    blocks = units * sum((factor >> 4) * (factor & 15) for factor in factors)
    whole = marker not in (0xC0, 0xC1) or scans > 1
    coefficients = _BLOCK_BYTES * blocks if whole else 0
    seconds = _PER_BLOCK * blocks + _PER_BLOCK_AND_SCAN * blocks * scans + parsing
    channels = 1 if len(factors) == 1 else 4
    # Arithmetic coding and lossless JPEG (which Pillow refuses) are no camera's.
    bounded = marker in (0xC0, 0xC1, 0xC2)
    pixels = width * height
    # What reduction does not save.
    fixed = coefficients + kept
    return Header("JPEG", width, height, channels * pixels + fixed, seconds, orientation, fixed, bounded=bounded)


def _read_png(data: bytes) -> Header:
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    position, chunks, orientation, texts, kept = 8, 0, 1, 0, 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks += 1
        _count(chunks, "chunks")
        if kind == b"eXIf":
            orientation = orientation_of(data[position + 8 : position + 8 + length])
        # Pillow expands each to at most a megabyte, and keeps at most 64.
        texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        kept += 0 if kind == b"IDAT" else length
        if kind == b"IEND":
            break
        position += 12 + length
    pixels = width * height
    channels = 1 if colour in (0, 3) and depth <= 8 else 2 if colour == 0 else 4
    seconds = _PER_PIXEL["PNG"] * pixels * (2 if interlaced else 1) + _PER_BYTE * len(data) + _PER_PART * chunks
    memory = channels * pixels + 3 * min(kept, len(data)) + _TEXT_BYTES * min(texts, 66)
    return Header("PNG", width, height, memory, seconds + _PER_TEXT * texts, orientation)


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        if len(data) < 30:
            raise ValueError("no canvas")
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ValueError("no frame")
    position, chunks, orientation, lossless = 12, 0, 1, False
    while position + 8 <= len(data):
        chunk, length = struct.unpack_from("<4sI", data, position)
        chunks += 1
        _count(chunks, "chunks")
        lossless = lossless or chunk in _LOSSLESS_CHUNKS
        if chunk == b"EXIF":
            exif = data[position + 8 : position + 8 + length]
            orientation = orientation_of(exif.removeprefix(b"Exif\0\0"))
        position += 8 + length + (length & 1)
    # libwebp keeps the canvas, the frame before it and the frame itself, and Pillow copies the canvas twice.
    pixels = width * height
    seconds = _PER_PIXEL["WEBP"] * pixels + _PER_BYTE * len(data) + _PER_PART * chunks
    tables = _TABLE_BYTES * min(_MOST_TABLES, pixels // 16, len(data) // _LEAST_CODE) if lossless else 0
    bounded = tables <= _BOUNDED_TABLES
    # Hardly any file has as many tables as it could, so a process with a limit of memory decodes those of more pixels.
    memory = 20 * pixels + 4 * len(data) + (tables if bounded else 0)
    return Header("WEBP", width, height, memory, seconds, orientation, bounded=bounded)


def _read_gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, blocks = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0), 0
    while position < len(data) and data[position] in b"!,\0":
        if data[position] == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
            width, height = max(width, left + frame_width), max(height, top + frame_height)
            break
        position += 2 if data[position] == 0x21 else 0
        # The blocks of an extension, or a stray zero.
        while position < len(data) and data[position]:
            position += 1 + data[position]
            blocks += 1
            _count(blocks, "blocks before its first frame")
        position += 1
        blocks += 1
        _count(blocks, "blocks before its first frame")
    pixels = width * height
    # Transparency makes Pillow keep a second picture.
    seconds = _PER_PIXEL["GIF"] * pixels + _PER_BYTE * len(data) + _PER_PART * blocks
    return Header("GIF", width, height, 5 * pixels, seconds)


def _read_bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, depth, compression = struct.unpack_from("<IiHHI", data, 18)
    height = abs(height)
    pixels = width * height
    if compression in (1, 2):
        # Pillow decodes run lengths in Python, pixel by pixel, into an array that it copies.
        seconds = _PER_RLE_PIXEL * pixels + _PER_RLE_BYTE * len(data)
        return Header("BMP", width, height, 4 * pixels, seconds)
    channels = 1 if depth <= 8 else 4
    return Header("BMP", width, height, channels * pixels, _PER_PIXEL["BMP"] * pixels + _PER_BYTE * len(data))


def _read_tiff(data: bytes) -> Header:
    tags = read_directory(data)
    width, height = tags.value(256), tags.value(257)
    if width is None or height is None:
        raise ValueError("no size")
    samples = min(tags.value(277) or 1, 8)
    bits = min(tags.value(258) or 1, 64)
    compression = tags.value(259) or 1
    planes = samples if tags.value(284) == 2 else 1
    pixel_bytes = -(-samples * bits // 8)
    part_width, part_height, parts = _tiff_parts(tags, width, height, planes)
    part = part_width * part_height
    orientation = tags.value(274) or 1
    pixels = width * height
    channels = 4 if samples > 1 or bits > 16 else 2 if bits == 16 else 1
    # Pillow turns the picture itself, which takes a copy. Subsampled colours are decoded as RGBA.
    copies = 2 if orientation in range(2, 9) else 1
    memory = (
        3 * len(data)
        + _STRIP_BYTES * parts
        + channels * copies * pixels
        + (max(pixel_bytes, 4) * part if compression != 1 else 0)
    )
    decoded = max(pixels, part * parts)
    seconds = _PER_PIXEL["TIFF"] * decoded * max(1, samples / 3) + _PER_BYTE * len(data) + _PER_STRIP * parts
    further = sum(tags.size_of(tag) for tag in _SUBDIRECTORIES)
    seconds += _PER_PART * further
    memory += _STRIP_BYTES * further
    if compression not in _PLAIN_TIFF:
        seconds += _PER_RARE_PIXEL * decoded
        memory += _RARE_BYTES_PER_PIXEL * part
    return Header("TIFF", width, height, memory, seconds, 1, bounded=compression in _PLAIN_TIFF)


def _tiff_parts(tags: Directory, width: int, height: int, planes: int) -> tuple[int, int, int]:
    """Return the width and the height in pixels of a tile or strip, and the number of them."""
    if 322 in tags.entries or 324 in tags.entries:
        part_width, part_height = tags.value(322), tags.value(323)
        if not part_width or not part_height:
            raise ValueError("tiles without a size")
        expected = -(-width // part_width) * -(-height // part_height)
        listed = tags.count(324)
    else:
        part_width, part_height = width, min(tags.value(278) or height, height) or 1
        expected = -(-height // part_height)
        listed = tags.count(273)
    expected *= planes
    if listed > max(expected, 1):
        raise _Excess(f"lists {listed:,} strips or tiles, but {expected:,} cover it; save it again with an editor")
    if (expected > 16 and part_width * part_height < 16) or listed > 1_000_000:
        raise _Excess(f"has {listed:,} strips or tiles; save it again with larger ones")
    return part_width, part_height, listed


def _read_ispe(kind: str, data: bytes) -> Header:
    # AVIF and HEIC state the size of each of their pictures in a box `ispe`: the shown one, its tiles, a thumbnail.
    sizes = [struct.unpack(">II", found[1]) for found in _ISPE.finditer(data)]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return _rare(kind, width, height, len(data))


def _read_jpeg2000(data: bytes) -> Header:
    # The marker SIZ of the code stream: lengths, capabilities, then the sides of the canvas and its offsets.
    start = data.index(b"\xff\x4f\xff\x51") + 8
    right, bottom, left, top = struct.unpack_from(">IIII", data, start)
    return _rare("JPEG2000", right - left, bottom - top, len(data))


def _rare(kind: str, width: int, height: int, size: int) -> Header:
    pixels = width * height
    seconds = _PER_RARE_PIXEL * pixels + _PER_BYTE * size
    return Header(kind, width, height, _RARE_BYTES_PER_PIXEL * pixels, seconds, bounded=False)


_READERS: Final[Mapping[str, Callable[[bytes], Header]]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "GIF": _read_gif,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
    "AVIF": partial(_read_ispe, "AVIF"),
    "HEIF": partial(_read_ispe, "HEIF"),
    "JPEG2000": _read_jpeg2000,
}

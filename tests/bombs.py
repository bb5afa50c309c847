"""Pictures that cost far more to decode than their bytes or their pixels suggest, at any size up to the full one."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from PIL import Image


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture's bytes in a format."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of `scans` scans; each costs a walk over all blocks."""
    data = encode(Image.new("RGB", (side, side), (90, 60, 30)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + b"\xff\xd9"


def progressive(side: int) -> bytes:
    """A progressive JPEG of one colour without subsampled colours: its coefficients take 6 bytes a pixel."""
    return encode(Image.new("RGB", (side, side), (90, 60, 30)), "JPEG", progressive=True, subsampling=0)


def many_segments(count: int) -> bytes:
    """A JPEG with `count` empty comments before its frame."""
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * count + data[2:]


def segments(marker: int, content: bytes, count: int) -> bytes:
    """A JPEG with `count` equal segments before its frame."""
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + (b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content) * count + data[2:]


def exif_segments(count: int) -> bytes:
    """A JPEG with `count` segments of EXIF, which Pillow joins one by one."""
    return segments(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(980), count)


def photoshop_blocks(count: int) -> bytes:
    """A JPEG with `count` segments of 5,000 empty blocks of Photoshop."""
    return segments(0xED, b"Photoshop 3.0\0" + b"8BIM\0\1\0\0\0\0\0\0" * 5000, count)


def many_tables(count: int) -> bytes:
    """A JPEG with `count` segments of 1,000 quantisation tables."""
    return segments(0xDB, (b"\0" + b"\1" * 64) * 1000, count)


def many_texts(count: int) -> bytes:
    """A PNG with `count` compressed texts of a megabyte and without a name, which Pillow expands and does not count."""
    data = encode(Image.new("RGB", (8, 8)), "PNG")
    return data[:33] + chunk(b"zTXt", b"\0\0" + zlib.compress(bytes(1_000_000), 9)) * count + data[33:]


def named_texts(count: int) -> bytes:
    """A PNG with `count` compressed texts of a megabyte, each of its own name, which Pillow keeps."""
    data = encode(Image.new("RGB", (8, 8)), "PNG")
    text = zlib.compress(bytes(1_000_000), 9)
    return data[:33] + b"".join(chunk(b"zTXt", b"n%d\0\0" % one + text) for one in range(count)) + data[33:]


def junk_between_segments(count: int) -> bytes:
    """A JPEG with `count` bytes between two segments, which Pillow skips one by one."""
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return data[:20] + bytes(count) + data[20:]


def padding_between_segments(count: int) -> bytes:
    """A JPEG with `count` bytes of padding before a marker."""
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return data[:20] + b"\xff" * count + data[20:]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def many_chunks(count: int) -> bytes:
    """A PNG with `count` texts of one letter."""
    data = encode(Image.new("RGB", (8, 8)), "PNG")
    return data[:33] + chunk(b"tEXt", b"a\0") * count + data[33:]


def interlaced(side: int) -> bytes:
    """An interlaced PNG of noise: seven passes over the picture."""
    draw = np.random.default_rng(0)
    rows = []
    for column, row, step_x, step_y in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    ):  # fmt: skip
        width, height = -(-(side - column) // step_x), -(-(side - row) // step_y)
        for _ in range(height if width > 0 else 0):
            rows.append(b"\4" + draw.integers(0, 256, 3 * width, dtype=np.uint8).tobytes())
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 1)
    content = chunk(b"IDAT", zlib.compress(b"".join(rows), 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


def many_webp_chunks(count: int) -> bytes:
    """A WebP with `count` empty chunks of an unknown kind."""
    plain = encode(Image.new("RGB", (8, 8)), "WEBP")
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0) + b"\7\0\0\7\0\0" + b"ABCD\0\0\0\0" * count + plain[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def flat_webp(side: int) -> bytes:
    """A lossless WebP of one colour: some kilobytes that take 20 bytes a pixel."""
    return encode(Image.new("RGB", (side, side), (9, 9, 9)), "WEBP", lossless=True, method=0)


def many_comments(count: int) -> bytes:
    """A GIF with a comment in `count` blocks of one letter."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + b"!\xfe" + b"\1a" * count + b"\0,"
        + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\2\2\x4c\1\0;"
    )  # fmt: skip


def run_lengths(width: int, height: int) -> bytes:
    """A run-length coded BMP whose rows end after one pixel; Pillow fills each in a loop of Python."""
    rows = b"\1\5\0\0" * height + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + bytes(range(256)) * 4 + rows


def tiff(entries: dict[int, tuple[int, int, int]], rest: bytes = b"") -> bytes:
    """A TIFF of one directory, tag → type, count, value; `rest` follows it."""
    tags = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4) + rest


def many_strips(count: int) -> bytes:
    """A TIFF of 8 × 8 pixels that lists `count` strips, all at the same place."""
    start = 8 + 2 + 12 * 9 + 4
    return tiff(
        {
            256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
            273: (4, count, start), 277: (3, 1, 1), 278: (4, 1, 1), 279: (4, count, start),
        },
        struct.pack("<I", 8) * count,
    )  # fmt: skip


def stated_tile(side: int, tile: int) -> bytes:
    """A TIFF of `side` × `side` pixels whose only tile is stated as `tile` × `tile`, with no data."""
    return tiff(
        {
            256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1),
            277: (3, 1, 1), 322: (4, 1, tile), 323: (4, 1, tile), 324: (4, 1, 8), 325: (4, 1, 100),
        }
    )  # fmt: skip


def large_tile(tile: int, side: int = 64) -> bytes:
    """A TIFF of at most 64 × 64 pixels with one compressed tile of `tile` × `tile`: megabytes for a stamp."""
    side = min(side, tile)
    squeezer = zlib.compressobj(6)
    parts = [squeezer.compress(bytes(tile)) for _ in range(tile)]
    content = b"".join([*parts, squeezer.flush()])
    start = 8 + 2 + 12 * 10 + 4
    return tiff(
        {
            256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1),
            277: (3, 1, 1), 322: (4, 1, tile), 323: (4, 1, tile), 324: (4, 1, start), 325: (4, 1, len(content)),
        },
        content,
    )  # fmt: skip


def many_tags(count: int) -> bytes:
    """A TIFF whose EXIF directory has `count` tags."""
    data = bytearray(encode(Image.new("RGB", (8, 8)), "TIFF", tiffinfo={34665: 0}))
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        if struct.unpack_from(f"{order}H", data, entry)[0] == 34665:
            data[entry + 2 : entry + 12] = struct.pack(f"{order}HII", 4, 1, len(data))
    tags = b"".join(struct.pack(f"{order}HHII", 1000 + tag, 4, 1, tag) for tag in range(count))
    return bytes(data) + struct.pack(f"{order}H", count) + tags + bytes(4)


def stated_jpeg(width: int, height: int, size: int) -> bytes:
    """A baseline JPEG that states a size, in a file of `size` bytes: enough for its headers, not for its pixels."""
    data = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data) + bytes(size - len(data))


def stated_png(width: int, height: int) -> bytes:
    """A PNG that states a size, with no pixels."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )


def portrait(width: int, height: int) -> bytes:
    """An ordinary photograph held upright: a baseline JPEG that EXIF rotates."""
    texture = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(texture).resize((width, height), Image.Resampling.BICUBIC)
    return encode(picture, "JPEG", exif=exif, quality=85)


def flat(kind: str, width: int, height: int) -> bytes:
    """A picture of one colour: as few bytes as a format has for so many pixels."""
    return encode(Image.new("RGB", (width, height), (90, 60, 30)), kind)


# Each as large as the service's limits of 20 MB and 200 megapixels allow, or enough to fill a gigabyte or a minute.
FULL_SIZE: Final[Mapping[str, Callable[[], bytes]]] = {
    "portrait of 48 megapixels": lambda: portrait(8064, 6048),
    "portrait of 48 megapixels, again": lambda: portrait(8064, 6048),
    "WebP of 50 megapixels in 2 KB": lambda: flat_webp(7071),
    "WebP of 14 megapixels": lambda: flat_webp(3700),
    "TIFF stamp of one tile of 400 megapixels": lambda: large_tile(20_000),
    "TIFF stamp of one tile of 49 megapixels": lambda: large_tile(7000),
    "TIFF stamp that states a tile of 900 megapixels": lambda: stated_tile(64, 30_000),
    "TIFF of a million strips": lambda: many_strips(1_000_000),
    "TIFF of 4 million strips": lambda: many_strips(4_000_000),
    "BMP of run lengths, 50 megapixels": lambda: run_lengths(20_000, 2500),
    "BMP of run lengths, 30 megapixels": lambda: run_lengths(6000, 5000),
    "BMP of run lengths, 16 megapixels": lambda: run_lengths(6000, 2700),
    "JPEG of 2,000 scans": lambda: many_scans(4000, 2000),
    "JPEG of 100 scans, 49 megapixels": lambda: many_scans(7000, 100),
    "JPEG of 100 scans, 16 megapixels": lambda: many_scans(4000, 100),
    "progressive JPEG of 48 megapixels, 4:4:4": lambda: progressive(6900),
    "JPEG of 108 megapixels": lambda: flat("JPEG", 12_000, 9000),
    "JPEG of 4 million segments": lambda: many_segments(4_000_000),
    "JPEG with 19 MB of junk": lambda: junk_between_segments(19_000_000),
    "JPEG with 19 MB of padding": lambda: padding_between_segments(19_000_000),
    "JPEG of 19,000 segments of EXIF": lambda: exif_segments(19_000),
    "JPEG of 1.5 million blocks of Photoshop": lambda: photoshop_blocks(300),
    "JPEG of 290,000 tables": lambda: many_tables(290),
    "PNG of 49 megapixels": lambda: flat("PNG", 7000, 7000),
    "PNG of 196 megapixels": lambda: flat_png(14_000),
    "PNG, interlaced": lambda: interlaced(2500),
    "PNG of a million chunks": lambda: many_chunks(1_000_000),
    "PNG of 15,000 texts of a megabyte": lambda: many_texts(15_000),
    "PNG of 1,000 texts of a megabyte": lambda: many_texts(1000),
    "PNG of 60 named texts of a megabyte": lambda: named_texts(60),
    "WebP of 2 million chunks": lambda: many_webp_chunks(2_000_000),
    "GIF of 9 million blocks of comment": lambda: many_comments(9_000_000),
    "GIF of 49 megapixels": lambda: flat("GIF", 7000, 7000),
}


def flat_png(side: int) -> bytes:
    """A PNG of one bit a pixel, all black: 24 KB for 196 megapixels."""
    return encode(Image.new("1", (side, side)), "PNG")

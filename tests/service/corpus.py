"""Hostile uploads: mutated, truncated, mislabelled and malicious files in every format, as many as wanted.

`python -m tests.service.corpus DIR 100` writes some to look at, and the bombs at full size. Everything is drawn from a
numbered seed, so that a failure is found again by its number.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests import bombs

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MEDIA_TYPES = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/svg+xml",
    "application/octet-stream",
    "text/html",
    "application/json",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
    "multipart/mixed; boundary=x",
    "",
    "\x7f/\xff",
)


@dataclass(frozen=True)
class Upload:
    """One request's body and Content-Type, and the name of its kind."""

    kind: str
    body: bytes
    media_type: str


def upload(seed: int) -> Upload:
    """Return the upload of a seed; the same seed gives the same upload."""
    draw = random.Random(seed)
    make = draw.choice(MAKERS)
    body = make(draw)
    media_type = draw.choice(MEDIA_TYPES) if draw.random() < 0.3 else "image/jpeg"
    if draw.random() < 0.2:
        body, media_type = form(body, draw)
    return Upload(make.__name__, body, media_type)


def picture(draw: random.Random, kind: str | None = None) -> bytes:
    """A small valid image of some format, mode and size."""
    kind = kind or draw.choice(FORMATS)
    modes = {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGB", "L", "RGBA", "LA", "P", "1", "I;16"),
        "WEBP": ("RGB", "RGBA"),
        "BMP": ("RGB", "L", "P", "1"),
        "TIFF": ("RGB", "L", "RGBA", "CMYK", "I;16", "1", "F", "LAB"),
        "GIF": ("P", "L"),
    }
    mode = draw.choice(modes[kind])
    size = draw.choice([(1, 1), (7, 300), (40, 30), (64, 64), (120, 90)])
    noise = np.random.default_rng(draw.randrange(1 << 30)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.frombytes("LAB", size, noise.tobytes())
    else:
        image = Image.fromarray(noise).convert(mode)
    target = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(0, 12)
    options = {} if kind in ("BMP", "GIF") else {"exif": exif}
    image.save(target, kind, **options)
    return target.getvalue()


def whole(draw: random.Random) -> bytes:
    """A valid image, so that predictions come between the refusals."""
    return picture(draw)


def mutated(draw: random.Random) -> bytes:
    """An image with some bytes changed."""
    data = bytearray(picture(draw))
    for _ in range(draw.choice([1, 2, 8, 64])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def mutated_header(draw: random.Random) -> bytes:
    """An image with changes in its first bytes, which hold sizes and offsets."""
    data = bytearray(picture(draw))
    for _ in range(draw.choice([1, 2, 4])):
        data[draw.randrange(min(len(data), 64))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    return bytes(data)


def truncated(draw: random.Random) -> bytes:
    """The beginning of an image."""
    data = picture(draw)
    return data[: draw.randrange(len(data))]


def spliced(draw: random.Random) -> bytes:
    """The beginning of one image and the end of another."""
    first, second = picture(draw), picture(draw)
    return first[: draw.randrange(len(first))] + second[draw.randrange(len(second)) :]


def repeated(draw: random.Random) -> bytes:
    """An image with one part repeated many times."""
    data = picture(draw)
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.randrange(1, 64))
    return data[:end] + data[start:end] * draw.randrange(2, 200) + data[end:]


def polyglot(draw: random.Random) -> bytes:
    """An image that is also a file of another type, or the reverse."""
    other = draw.choice(
        [b"%PDF-1.7\n", b"PK\x03\x04", b"<?php system('id'); ?>", b"<svg onload='alert(1)'/>", b"#!/bin/sh\n"]
    )
    data = picture(draw)
    return draw.choice([data + other, other + data, data[:20] + other + data[20:]])


def garbage(draw: random.Random) -> bytes:
    """Random bytes, perhaps behind a signature."""
    signatures = (
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\xff\xff\xff\xffWEBPVP8X",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"GIF89a",
    )
    return draw.choice(signatures) + draw.randbytes(draw.choice([0, 1, 10, 100, 5000]))


def address(draw: random.Random) -> bytes:
    """A URL in place of an image."""
    return draw.choice(
        [
            b"http://127.0.0.1:1/a.jpg",
            b"file:///etc/passwd",
            b"data:image/png;base64,AAAA",
            b'{"url": "http://127.0.0.1"}',
        ]
    )


def other_format(draw: random.Random) -> bytes:
    """An image of an unsupported format, or compressed once more."""
    image = Image.new("RGB", (8, 8))
    kind = draw.choice(["PPM", "ICO", "TGA", "EPS", "PCX", "gzip"])
    if kind == "gzip":
        return gzip.compress(picture(draw))
    target = io.BytesIO()
    image.save(target, kind)
    return target.getvalue()


def bomb(draw: random.Random) -> bytes:
    """A small file that states, or holds, a huge number of pixels."""
    return draw.choice(BOMBS)(draw)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(draw: random.Random) -> bytes:
    """A header that states up to 2³¹ pixels per side, before data for a few."""
    size = draw.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1)])
    header = struct.pack(">IIBBBBB", *size, 8, draw.choice([0, 2, 6]), 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + _chunk(b"IEND", b"")
    )


def png_text_bomb(draw: random.Random) -> bytes:
    """A small image with a compressed text of megabytes."""
    text = b"Comment\0\0" + zlib.compress(bytes(30_000_000), 9)
    data = picture(draw, "PNG")
    return data[:33] + _chunk(b"zTXt", text) + data[33:]


def jpeg_bomb(draw: random.Random) -> bytes:
    """A JPEG whose frame header states 65,500 × 65,500."""
    data = bytearray(picture(draw, "JPEG"))
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        position = data.find(marker)
        if position > 0:
            data[position + 5 : position + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def bmp_bomb(draw: random.Random) -> bytes:
    """A BMP of sides up to 2³¹, run-length coded or not."""
    side = draw.choice([50_000, 2**31 - 1, -(2**31)])
    header = struct.pack(
        "<IiiHHIIiiII", 40, side, draw.choice([side, 1]), 1, draw.choice([8, 24]), draw.choice([0, 1]), 0, 0, 0, 0, 0
    )
    return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + header + bytes(1000)


def gif_bomb(draw: random.Random) -> bytes:
    """A GIF of 65,535 × 65,535 with little data, or one with 20,000 frames."""
    if draw.random() < 0.5:
        return (
            b"GIF89a"
            + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0)
            + bytes(6)
            + b","
            + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0)
            + b"\x02\x02\x4c\x01\x00;"
        )
    frame = b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + frame * 20_000 + b";"


def tiff_bomb(draw: random.Random) -> bytes:
    """A TIFF of 4 billion pixels, or one whose directory refers to itself."""
    width, height = draw.choice([(65_535, 65_535), (2**31 - 1, 2**31 - 1), (1, 2**32 - 1)])
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, draw.choice([1, 5, 8, 32773])),
        (262, 3, 1, 1),
    ]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 100)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", draw.choice([0, 8])) + bytes(100)


def webp_bomb(draw: random.Random) -> bytes:
    """A WebP with a canvas of 16,384 × 16,384 and a small frame, or a damaged one."""
    canvas = struct.pack("<I", 16_383)[:3] * 2
    data = b"VP8X" + struct.pack("<I", 10) + bytes([draw.choice([0, 2, 0x10]), 0, 0, 0]) + canvas
    return b"RIFF" + struct.pack("<I", len(data) + 4 + 30) + b"WEBP" + data + picture(draw, "WEBP")[12:]


def deep_bomb(draw: random.Random) -> bytes:
    """A valid image with a small file and many pixels, just within or just beyond the limits."""
    side = draw.choice([900, 1100, 3000])
    target = io.BytesIO()
    Image.new("1", (side, side)).save(target, draw.choice(["PNG", "TIFF", "GIF"]))
    return target.getvalue()


def structure_bomb(draw: random.Random) -> bytes:
    """A picture of few pixels whose structure costs more than they do; `bombs.FULL_SIZE` has them at full size."""
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: bombs.many_scans(draw.choice([64, 900]), draw.choice([20, 100, 101, 400])),
        lambda: bombs.run_lengths(draw.choice([50, 900]), draw.choice([50, 900])),
        lambda: bombs.large_tile(draw.choice([300, 3000])),
        lambda: bombs.stated_tile(draw.choice([1, 64]), draw.choice([100, 65_000, 2**31])),
        lambda: bombs.many_strips(draw.choice([8, 9, 20_000])),
        lambda: bombs.many_segments(draw.choice([100, 21_000])),
        lambda: bombs.junk_between_segments(draw.choice([100, 70_000])),
        lambda: bombs.padding_between_segments(draw.choice([100, 70_000])),
        lambda: bombs.exif_segments(draw.choice([2, 150])),
        lambda: bombs.photoshop_blocks(2),
        lambda: bombs.many_tables(2),
        lambda: bombs.many_chunks(draw.choice([100, 12_000])),
        lambda: bombs.many_texts(draw.choice([3, 100])),
        lambda: bombs.named_texts(draw.choice([3, 70])),
        lambda: bombs.many_webp_chunks(draw.choice([10, 21_000])),
        lambda: bombs.many_comments(draw.choice([100, 21_000])),
        lambda: bombs.flat_webp(draw.choice([900, 1100])),
    )
    return draw.choice(makers)()


BOMBS: tuple[Callable[[random.Random], bytes], ...] = (
    png_bomb,
    png_text_bomb,
    jpeg_bomb,
    bmp_bomb,
    gif_bomb,
    tiff_bomb,
    webp_bomb,
    deep_bomb,
    structure_bomb,
)
MAKERS: tuple[Callable[[random.Random], bytes], ...] = (
    whole,
    mutated,
    mutated,
    mutated_header,
    mutated_header,
    truncated,
    spliced,
    repeated,
    polyglot,
    garbage,
    address,
    other_format,
    bomb,
)


def form(body: bytes, draw: random.Random) -> tuple[bytes, str]:
    """A multipart form that holds the body, valid or broken."""
    name = draw.choice([b"image", b"image", b"image", b"picture", b"", b"image\xff", b'"'])
    filename = draw.choice([b'; filename="a.jpg"', b"", b'; filename="../../etc/passwd"', b"; filename*=utf-8''%ff"])
    part = b'--x\r\nContent-Disposition: form-data; name="' + name + b'"' + filename + b"\r\n\r\n" + body + b"\r\n"
    data = part * draw.choice([1, 1, 1, 2, 5, 200 if len(body) < 2000 else 2]) + b"--x--\r\n"
    if draw.random() < 0.3:
        data = data[: draw.randrange(len(data))]
    return data, draw.choice(
        ["multipart/form-data; boundary=x"] * 3 + ["multipart/form-data; boundary=y", "multipart/form-data"]
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(int(sys.argv[2])):
        sample = upload(seed)
        (folder / f"{seed:05d}-{sample.kind}").write_bytes(sample.body)
    for kind, make in bombs.FULL_SIZE.items():
        (folder / f"full size, {kind}").write_bytes(make())

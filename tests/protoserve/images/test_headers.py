"""Headers tell size, orientation and cost; the costs bound what decoding really takes."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protoserve.errors import ImageError
from protoserve.images.decoding import decode
from protoserve.images.headers import MAX_SCANS, read_header
from protoserve.images.signatures import format_of
from tests import bombs

ROOT = Path(__file__).resolve().parents[3]


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def noise(mode: str, side: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC).convert(mode)


# Each kind of file, and what makes it as slow or as large as it gets for its pixels.
KINDS: dict[str, Callable[[int], bytes]] = {
    "jpeg": lambda side: encode(noise("RGB", side), "JPEG", quality=98),
    "jpeg 4:4:4": lambda side: encode(noise("RGB", side), "JPEG", quality=98, subsampling=0),
    "jpeg grey": lambda side: encode(noise("L", side), "JPEG", quality=98),
    "jpeg progressive": lambda side: encode(noise("RGB", side), "JPEG", quality=98, subsampling=0, progressive=True),
    "jpeg cmyk": lambda side: encode(noise("CMYK", side), "JPEG", progressive=True),
    "jpeg of many scans": lambda side: bombs.many_scans(side, MAX_SCANS),
    "png": lambda side: encode(noise("RGB", side), "PNG", compress_level=1),
    "png alpha": lambda side: encode(noise("RGBA", side), "PNG", compress_level=9),
    "png palette": lambda side: encode(noise("P", side), "PNG"),
    "png one bit": lambda side: encode(noise("1", side), "PNG"),
    "png interlaced": lambda side: bombs.interlaced(side),
    "png 16 bits": lambda side: encode(Image.fromarray(np.asarray(noise("L", side)).astype(np.uint16) * 257), "PNG"),
    "webp": lambda side: encode(noise("RGB", side), "WEBP", quality=95, method=0),
    "webp lossless": lambda side: encode(noise("RGB", side), "WEBP", lossless=True, method=0, quality=0),
    "webp alpha": lambda side: encode(noise("RGBA", side), "WEBP", method=0),
    "gif": lambda side: encode(noise("P", side), "GIF"),
    "bmp": lambda side: encode(noise("RGB", side), "BMP"),
    "bmp run lengths": lambda side: bombs.run_lengths(side, side),
    "tiff": lambda side: encode(noise("RGB", side), "TIFF"),
    "tiff turned": lambda side: encode(noise("RGB", side), "TIFF", tiffinfo={274: 6}),
    "tiff in one strip": lambda side: encode(noise("RGB", side), "TIFF", compression="tiff_lzw", tiffinfo={278: side}),
    "tiff deflate": lambda side: encode(noise("RGBA", side), "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": lambda side: encode(noise("RGB", side), "TIFF", compression="jpeg"),
    "tiff rows": lambda side: encode(noise("L", side), "TIFF", compression="packbits", tiffinfo={278: 1}),
    "tiff fax": lambda side: encode(noise("1", side), "TIFF", compression="group4"),
    "tiff of strips": lambda side: bombs.many_strips(8),
    "tiff of tags": lambda side: bombs.many_tags(side * 20),
    "jpeg of exif": lambda side: bombs.exif_segments(side),
    "jpeg of blocks": lambda side: bombs.photoshop_blocks(side // 50),
    "jpeg of tables": lambda side: bombs.many_tables(side // 50),
    "png of texts": lambda side: bombs.many_texts(side // 20),
    "png of named texts": lambda side: bombs.named_texts(min(side // 20, 60)),
    "tiff of one large tile": lambda side: bombs.large_tile(side),
}  # fmt: skip


# These hold 8 × 8 pixels at any size.
SMALL = (8, 8)
STAMPS = {kind for kind in KINDS if kind.endswith((" strips", " exif", " blocks", " tables", " texts", " tags"))}


@pytest.mark.parametrize("kind", [*KINDS, "avif", "jpeg 2000"])
def test_the_size_is_that_of_the_picture(kind: str) -> None:
    extra: dict[str, Callable[[int], bytes]] = {
        "avif": lambda side: encode(noise("RGB", side), "AVIF", speed=10),
        "jpeg 2000": lambda side: encode(noise("RGB", side), "JPEG2000"),
    }
    data = (KINDS | extra)[kind](64)
    known = format_of(data)
    assert known is not None
    header = read_header(data, known)
    assert (header.format, header.width, header.height) == (known, *(SMALL if kind in STAMPS else (64, 64)))
    assert header.bounded == (kind not in extra and kind != "tiff jpeg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_that_of_exif(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert read_header(encode(noise("RGB", 16), kind, exif=exif), kind).orientation == orientation
    assert read_header(encode(noise("RGB", 16), kind), kind).orientation == 1


MEASURE = """
import os, sys
from pathlib import Path
from protoserve.images.decoding import decode, decoding_cost
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule

def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

rule = InputRule(height=224, width=224, resize="crop")
for file in sorted(Path(sys.argv[1]).iterdir()):
    # Each in a process of its own, which has loaded the decoder.
    if not os.fork():
        data = file.read_bytes()
        fit(decode(sorted(Path(sys.argv[2]).glob(file.name))[0].read_bytes()), rule)
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        fit(decode(data), rule)
        taken, bound = peak() - before, decoding_cost(data).memory
        close = 0 < taken <= bound < 70e6 + 3 * taken
        print(f"{file.name}: {taken / 1e6:.1f} of {bound / 1e6:.1f} MB", close, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is measured on Linux")
def test_decoding_takes_no_more_memory_than_the_header_tells(tmp_path: Path) -> None:
    for folder, side in (("large", 1200), ("small", 64)):
        (tmp_path / folder).mkdir()
        for kind, make in KINDS.items():
            (tmp_path / folder / kind.replace(":", "")).write_bytes(make(side))
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "large", tmp_path / "small"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # Large blocks come from the system and return to it, so that the peak shows them.
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert measured.returncode == 0, measured.stderr
    lines = measured.stdout.splitlines()
    assert len(lines) == len(KINDS), measured.stdout
    assert all(line.endswith(" True") for line in lines), measured.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_no_more_time_than_the_header_tells(kind: str) -> None:
    data = KINDS[kind](500)
    known = format_of(data)
    assert known is not None
    spent = []
    for _ in range(3):
        start = time.thread_time()
        decode(data)
        spent.append(time.thread_time() - start)
    assert min(spent) < read_header(data, known).seconds


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bombs.many_scans(64, MAX_SCANS + 1), "more than 100 scans"),
        (bombs.many_segments(30_000), "more than 20,000 segments"),
        (bombs.junk_between_segments(100_000), "bytes between its segments"),
        (bombs.padding_between_segments(100_000), "bytes between its segments"),
        (bombs.many_chunks(30_000), "more than 20,000 chunks"),
        (bombs.many_webp_chunks(30_000), "more than 20,000 chunks"),
        (bombs.many_comments(30_000), "more than 20,000 blocks"),
        (bombs.many_strips(100_000), "lists 100,000 strips"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_structure_that_no_camera_writes_is_refused_at_once(data: bytes, message: str) -> None:
    start = time.thread_time()
    with pytest.raises(ImageError, match=message) as caught:
        decode(data)
    assert caught.value.code == "image_too_large"
    assert time.thread_time() - start < 0.5


def test_a_large_tile_counts_by_its_own_size() -> None:
    header = read_header(bombs.stated_tile(64, 20_000), "TIFF")
    assert header.pixels == 64 * 64
    assert header.memory > 3 * 20_000**2
    assert header.seconds > 20


def test_a_bomb_of_lossless_webp_counts_with_all_its_canvases() -> None:
    data = encode(Image.new("RGB", (7071, 7071)), "WEBP", lossless=True, method=0)
    assert len(data) < 4_000
    assert read_header(data, "WEBP").memory >= 16 * 7071**2


def test_lossless_webp_is_bounded_while_its_tables_can_not_fill_the_memory() -> None:
    small, large = KINDS["webp lossless"](200), KINDS["webp lossless"](1600)
    assert read_header(small, "WEBP").bounded
    # Pixels and bytes enough for 65,536 sets of tables, of about 5 KB each.
    assert not read_header(large, "WEBP").bounded
    # Few bytes hold few tables, and lossy pictures none.
    assert read_header(bombs.flat_webp(1600), "WEBP").bounded
    assert read_header(KINDS["webp"](1600), "WEBP").bounded


def test_damaged_headers_raise_nothing_but_image_errors() -> None:
    dice = random.Random(5)
    for make in KINDS.values():
        whole = make(32)
        known = format_of(whole)
        assert known is not None
        for _ in range(60):
            damaged = bytearray(whole[: dice.randrange(4, len(whole))])
            for _ in range(dice.choice([1, 3, 10])):
                damaged[dice.randrange(len(damaged))] = dice.choice([0, 255, dice.randrange(256)])
            try:
                read_header(bytes(damaged), known)
            except ImageError as error:
                assert error.code in {"broken_image", "image_too_large"}

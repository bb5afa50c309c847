#!/usr/bin/env python3
"""Measure what bounding and isolating the decoding of a picture costs, beside decoding it in a thread without either.

Example: python -m benchmarks.service.decoding
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import anyio

from benchmarks.measuring import described, machine, write_results
from protoserve.images.decoding import decode
from protoserve.images.fitting import FittedImage, fit
from protoserve.images.geometry import InputRule
from service.scheduling.decoding import Decoder, Upload, hide_main_module
from service.settings import Settings
from tests import bombs

T = TypeVar("T")
RULE = InputRule(height=224, width=224, resize="crop")
PICTURES = {"0.3 megapixels": (640, 480), "12 megapixels": (4000, 3000), "48 megapixels": (8064, 6048)}


def main() -> None:
    """Measure and write benchmarks/results/decoding.json and decoding.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    hide_main_module()
    found, rows = machine(), {}
    for name, (width, height) in PICTURES.items():
        rows[name] = anyio.run(measured, bombs.portrait(width, height), options.rounds)
    columns = list(next(iter(rows.values())))
    table = [
        "# The cost of bounded and isolated decoding",
        "",
        "`python -m benchmarks.service.decoding` writes this file. Medians in milliseconds, for a portrait that EXIF "
        "rotates. The header is read once more before a picture is admitted; a small picture then holds its share of "
        "memory in a thread. A process costs the way of the bytes there and of the pixels back, and it runs at a lower "
        "priority, so it is slower where others compute, too. The service uses it above about 16 megapixels.",
        "",
        described(found),
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(f'{row[column]:.3f}' for column in columns)} |" for name, row in rows.items()),
    ]
    write_results("decoding", {"machine": found, "milliseconds": rows}, "\n".join(table) + "\n")
    sys.stdout.write("\n".join(table) + "\n")


async def measured(data: bytes, rounds: int) -> dict[str, float]:
    """The medians of each way, in milliseconds; the ways take turns."""
    decoder = Decoder(Settings())
    upload = decoder.examine(RULE, data)
    large = Upload(data, replace(upload.cost, bounded=False))

    def here(data: bytes) -> FittedImage:
        return fit(decode(data, limits=decoder.limits, formats=decoder.settings.formats), RULE)

    async def read_header() -> None:
        decoder.examine(RULE, data)

    async def hold() -> None:
        async def start(work: Callable[[], T]) -> T:
            return work()

        await decoder.in_thread(small, start, lambda: None)

    small = Upload(data, replace(upload.cost, memory=1_000_000))
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "header": read_header,
        "holding memory": hold,
        "in a thread": lambda: decoder.threads.run(here, data),
        "in a process": lambda: decoder.fit(RULE, large, here),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            # The short ones are timed many at once.
            count = 100 if name in ("header", "holding memory") else 1
            start = time.perf_counter()
            for _ in range(count):
                await way()
            times[name].append(1000 * (time.perf_counter() - start) / count)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()

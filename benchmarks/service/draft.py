#!/usr/bin/env python3
"""Measure how well answers agree if large JPEGs are reduced while decoding, and how much time this saves.

Photographs smaller than `--side` are enlarged to it first, for a data set of small ones; that leaves out the finest
detail of a camera's own pictures, so judge by large photographs of your own where you have them.

Example: python -m benchmarks.service.draft bundles/grocery photos/
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import RESULTS, described, machine
from protoserve.inference.classifier import load


def main() -> None:
    """Measure and write benchmarks/results/draft.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="a folder of photographs")
    parser.add_argument("--photographs", type=int, default=500)
    parser.add_argument("--side", type=int, default=3000, help="the shorter side, in pixels")
    parser.add_argument("--out", type=Path, default=RESULTS / "draft.json")
    options = parser.parse_args()
    files = sorted(options.data.rglob("*.jpg"))
    files = files[:: max(1, len(files) // options.photographs)][: options.photographs]
    classifier = load(options.bundle, device="cpu")
    agreed, differences = 0, []
    times: dict[bool, list[float]] = {False: [], True: []}
    for number, file in enumerate(files):
        data = enlarged(file, options.side)
        answers = {}
        # Alternate which one goes first.
        for draft in (False, True) if number % 2 else (True, False):
            begun = time.perf_counter()
            fitted = classifier.fit(data, draft=draft)
            times[draft].append((time.perf_counter() - begun) * 1000)
            [answers[draft]] = classifier.predict_fitted([fitted], top_k=0)
        agreed += answers[False].path == answers[True].path
        pairs = zip(answers[False].levels, answers[True].levels, strict=False)
        differences.append(max(abs(one.probability - other.probability) for one, other in pairs))
    found = {
        "machine": machine(),
        "photographs": len(files),
        "shorter_side": options.side,
        "same_path": agreed / len(files),
        "difference_of_probability": {
            "mean": float(np.mean(differences)),
            "99th percentile": float(np.quantile(differences, 0.99)),
        },
        "decode_ms": {"whole": statistics.median(times[False]), "draft": statistics.median(times[True])},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}, indent=1))
    print(described(found["machine"]))


def enlarged(file: Path, side: int) -> bytes:
    """The photograph as a JPEG whose shorter side has at least `side` pixels."""
    with Image.open(file) as picture:
        factor = side / min(picture.size)
        if factor <= 1:
            return file.read_bytes()
        large = picture.convert("RGB").resize(
            (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC
        )
    target = io.BytesIO()
    large.save(target, "JPEG", quality=92)
    return target.getvalue()


if __name__ == "__main__":
    main()

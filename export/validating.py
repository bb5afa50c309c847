"""Re-score an exported graph on a data set: the same metrics as the run's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from protoserve.bundle import read_bundle
from protoserve.dataset import read_split
from protoserve.engine import Device, Engine
from protoserve.images import decode, fit
from protoserve.metrics import scores


def validate(
    bundle_directory: Path,
    data: Path,
    split: str,
    *,
    device: Device = "auto",
    batch: int = 16,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """`protoserve.metrics.scores` of a bundle's `model.onnx` on one split, with the `seconds` it took.

    `advance(done, total)` is called after each batch.
    """
    bundle = read_bundle(bundle_directory)
    engine = Engine(bundle, device=device)
    dataset = read_split(data, split, bundle.taxonomy)
    rule = bundle.manifest.input
    began = time.perf_counter()
    found = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(dataset), batch):
            numbers = range(start, min(len(dataset), start + batch))
            arrays = pool.map(lambda number: fit(decode(dataset.file(number)), rule).array, numbers)
            found.append(engine.run(np.stack(list(arrays))).log_probability)
            advance(len(numbers), len(dataset))
    result = scores(np.concatenate(found), dataset.leaves, dataset.taxonomy)
    return {**result, "seconds": round(time.perf_counter() - began, 2)}

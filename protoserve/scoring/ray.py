"""Scoring with Ray Data on one machine or a cluster: distributes a job's parts to actors. Needs the extra `ray`.

All machines must see the pictures, the bundle and the folder of parts under the same paths.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.data

from protoserve.device import Device
from protoserve.inference.classifier import load
from protoserve.scoring.local import Job, score_part, write_part


class PartScorer:
    """An actor that loads the model once, then scores and writes one part after another."""

    def __init__(self, job: Job, directory: str, bundle: str, device: Device, threads: int) -> None:
        self.job = job
        self.directory = Path(directory)
        self.classifier = load(bundle, device=device, threads=threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score and write the part `row["part"]`; returns the part and its number of `pictures`."""
        index = int(row["part"])
        table = score_part(self.job, index, self.classifier)
        write_part(table, self.directory, index)
        return {"part": index, "pictures": table.num_rows}


def score_parts(
    job: Job,
    parts: list[int],
    directory: Path,
    bundle: Path,
    *,
    device: Device,
    actors: int,
    threads: int,
    advance: Callable[[int], None],
) -> None:
    """Score the given parts with `actors` actors of `threads` CPUs each; calls `advance(pictures)` after each part.

    Uses the cluster at RAY_ADDRESS if that is set, else starts Ray on this machine.
    """
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        rows = ray.data.from_items([{"part": index} for index in parts], override_num_blocks=len(parts)).map(
            PartScorer,
            fn_constructor_args=(job, str(directory.resolve()), str(bundle.resolve()), device, threads),
            concurrency=min(actors, len(parts)),
            num_cpus=threads,
            num_gpus=1 if device == "cuda" else None,
        )
        for row in rows.iter_rows():
            advance(int(row["pictures"]))
    finally:
        if started_here:
            ray.shutdown()

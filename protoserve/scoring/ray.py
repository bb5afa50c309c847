"""Scoring with Ray Data: parts of a job go to actors with a model each, on one machine or a cluster (extra `ray`).

The pictures, the bundle and the folder of parts must be seen by all machines under the same paths.
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
    """An actor: loads the model once, then scores and writes one part after another."""

    def __init__(self, job: Job, directory: str, bundle: str, device: Device, threads: int) -> None:
        self.job = job
        self.directory = Path(directory)
        self.classifier = load(bundle, device=device, threads=threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score the part that the row names; the row that comes back says how many pictures it had."""
        number = int(row["part"])
        table = score_part(self.job, number, self.classifier)
        write_part(table, self.directory, number)
        return {"part": number, "pictures": table.num_rows}


def score_parts(
    job: Job,
    parts: list[int],
    directory: Path,
    bundle: Path,
    *,
    device: Device,
    actors: int,
    threads: int,
    done: Callable[[int], None],
) -> None:
    """Score the given parts with `actors` actors of `threads` CPUs each; `done` is told of every part's pictures.

    Joins the cluster that RAY_ADDRESS names, else starts Ray on this machine.
    """
    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        rows = ray.data.from_items([{"part": number} for number in parts], override_num_blocks=len(parts)).map(
            PartScorer,
            fn_constructor_args=(job, str(directory.resolve()), str(bundle.resolve()), device, threads),
            concurrency=min(actors, len(parts)),
            num_cpus=threads,
            num_gpus=1 if device == "cuda" else None,
        )
        for row in rows.iter_rows():
            done(int(row["pictures"]))
    finally:
        if began:
            ray.shutdown()

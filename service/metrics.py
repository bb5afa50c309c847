"""What the service counts, for Prometheus; every label has few values, whatever clients send.

BentoML's own request metrics are switched off (see `service.service`): they carry the raw path as a label, so
that anybody could fill the server's memory and disk with made-up paths.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, mmap_dict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from protoserve.errors import InputError
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence import EvidenceTable
from protoserve.schema import Prediction

Stage = Literal["read", "decode", "queue", "infer", "evidence", "encode"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
# Levels whose nodes are counted one by one; further down a tree may have tens of thousands.
COUNTED_LEVELS: Final = 2
# The most nodes of a level, and the most parents, that get a label of their own; the others share one.
MOST_LABELS: Final = 200
OTHER: Final = "(other)"
ROOT: Final = "(root)"

# Counts of several workers lie in files that are mapped into memory: whoever writes to a page that a full disk can't
# hold is killed by the kernel. So each file is made large enough for all labels at once, and `reserve_disk` claims it.
_FILE_BYTES: Final = 1 << 20
mmap_dict._INITIAL_MMAP_SIZE = _FILE_BYTES

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# Of a cosine (−1 to 1), of log(1 + 1/d) and of an autoencoder's, which may be anything around 0.
_SIMILARITIES: Final = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)

REQUESTS: Final = Counter(
    "protoserve_requests", "Requests answered, by route and status", ["route", "method", "status"]
)
REQUEST_SECONDS: Final = Histogram(
    "protoserve_request_seconds",
    "Time from a request's first byte to its answer's last",
    ["route"],
    buckets=_SECONDS,
)
REJECTED: Final = Counter(
    "protoserve_rejected", "Requests and pictures of a batch refused, by the problem's code", ["code"]
)
IN_FLIGHT: Final = Gauge("protoserve_in_flight", "Requests being answered", multiprocess_mode="livesum")
QUEUED: Final = Gauge("protoserve_queued", "Pictures that wait for a lane", multiprocess_mode="livesum")
STAGE_SECONDS: Final = Histogram(
    "protoserve_stage_seconds",
    "Time of one stage of a prediction: read (the body), queue (waiting for a lane), decode (waiting for a thread "
    "included where it has threads of its own), infer (the whole batch), evidence, encode",
    ["stage"],
    buckets=_SECONDS,
)
BATCH_SIZE: Final = Histogram(
    "protoserve_batch_size", "Pictures in one inference", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
BODY_BYTES: Final = Histogram(
    "protoserve_body_bytes", "Size of request bodies with pictures", buckets=tuple(4.0**power for power in range(5, 14))
)
IMAGE_PIXELS: Final = Histogram(
    "protoserve_image_pixels", "Pixels of the pictures read", buckets=tuple(4.0**power for power in range(5, 14))
)
PREDICTIONS: Final = Counter(
    "protoserve_predictions", "Pictures predicted, by the node at levels 1 and 2", ["level", "node"]
)
CONFIDENCE: Final = Histogram(
    "protoserve_confidence", "Probability of the predicted node, by level", ["level"], buckets=_SHARES
)
NOVELTY: Final = Counter(
    "protoserve_novelty",
    "Pictures judged at a parent: of a class that it knows, or of none",
    ["parent", "known"],
)
GREATEST_SIMILARITY: Final = Histogram(
    "protoserve_greatest_similarity",
    "The greatest similarity among the evidence for the predicted node, by level; it drifts when pictures change",
    ["level"],
    buckets=_SIMILARITIES,
)
RELOADS: Final = Counter("protoserve_reloads", "Changes of the model: done or refused", ["outcome"])
# A Prometheus Info does not work with several processes.
MODEL: Final = Gauge(
    "protoserve_model_info",
    "1 for the model that answers, 0 for one that did before",
    ["name", "version", "kind", "device"],
    multiprocess_mode="livemax",
)


@cache
def stage_seconds(stage: Stage) -> Histogram:
    """The histogram of one stage."""
    return STAGE_SECONDS.labels(stage)


def latest() -> bytes:
    """All counts in Prometheus's text format, of all workers where there are several."""
    if DIRECTORY not in os.environ:
        return generate_latest(PROCESS_REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget_the_dead() -> None:
    """Take workers that have ended out of the gauges; their counts stay, for counters may only grow."""
    if DIRECTORY not in os.environ:
        return
    processes = {
        int(number)
        for file in Path(os.environ[DIRECTORY]).glob("gauge_live*_*.db")
        if (number := file.stem.rpartition("_")[2]).isdecimal()
    }
    for process in processes:
        if not _is_running(process):
            mark_process_dead(process)  # type: ignore[no-untyped-call]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Somebody else's by now; but then it runs.
        return True
    return True


def reserve_disk() -> None:
    """Claim the disk that this process's counts may need; raises InputError when there is not enough."""
    if DIRECTORY not in os.environ or not hasattr(os, "posix_fallocate"):
        return
    directory = Path(os.environ[DIRECTORY])
    for file in directory.glob(f"*_{os.getpid()}.db"):
        try:
            with file.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, _FILE_BYTES)
        except OSError as error:
            raise InputError(
                f"{directory}: no room for the counts of a worker ({error.strerror}); give {_FILE_BYTES >> 18} MiB per "
                "worker, or another PROTOSERVE_METRICS_DIRECTORY"
            ) from error


class PredictionCounts:
    """Counts what a model predicts; knows the labels that its taxonomy may take, so there are no more of them."""

    def __init__(self, table: EvidenceTable) -> None:
        counted = [name for nodes in table.levels[:COUNTED_LEVELS] for name in _names(table, nodes)]
        self._nodes = frozenset(counted)
        inner = dict.fromkeys("/".join(path[:-1]) for path in table.nodes)
        self._parents = frozenset(list(inner)[:MOST_LABELS])

    def count(self, prediction: Prediction, outputs: Outputs) -> None:
        """Count one picture's prediction; `outputs` is the graph's answer for it alone."""
        parent = ""
        undecided = True
        for level in prediction.levels:
            number = str(level.level)
            if level.level <= COUNTED_LEVELS:
                PREDICTIONS.labels(number, level.node if level.node in self._nodes else OTHER).inc()
            CONFIDENCE.labels(number).observe(level.probability)
            found = outputs.evidence_prototype[0, level.level - 1] >= 0
            if found.any():
                greatest = np.max(outputs.evidence_similarity[0, level.level - 1][found])
                GREATEST_SIMILARITY.labels(number).observe(float(greatest))
            # Below the first unknown level nothing is judged any more; an only child is not judged at all.
            if level.known is not None and undecided and not level.forced:
                label = (parent or ROOT) if parent in self._parents else OTHER
                NOVELTY.labels(label, "true" if level.known else "false").inc()
                undecided = level.known
            parent = level.node


def _names(table: EvidenceTable, nodes: range) -> tuple[str, ...]:
    return tuple(table.names[node] for node in nodes[:MOST_LABELS])

"""Prometheus metrics. Every label has a bounded number of values, whatever clients send.

BentoML's own request metrics are disabled (see `service.service`): they use the raw path as a label, so that any
client could fill the server's memory and disk with invented paths.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from protoserve.errors import InputError
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.schema import Prediction
from service.operations.metrics_folder import DIRECTORY

Stage = Literal["read", "decode", "queue", "infer", "evidence", "encode"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Levels with one label per node; deeper levels may have tens of thousands of nodes.
COUNTED_LEVELS: Final = 2
# The most nodes of a level, and the most parents, that have their own label; the others share one.
MAX_LABELS: Final = 200
OTHER: Final = "(other)"
ROOT: Final = "(root)"

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SHARES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# Covers cosines (−1 to 1), log(1 + 1/d), and an autoencoder's similarities, which have no fixed range.
_SIMILARITIES: Final = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)

REQUESTS: Final = Counter(
    "protoserve_requests", "Requests answered, by route and status", ["route", "method", "status"]
)
REQUEST_SECONDS: Final = Histogram(
    "protoserve_request_seconds",
    "Time from the start of a request to the end of its answer",
    ["route"],
    buckets=_SECONDS,
)
REJECTED: Final = Counter(
    "protoserve_rejected", "Refused requests and images of batch requests, by the problem's code", ["code"]
)
IN_FLIGHT: Final = Gauge("protoserve_in_flight", "Requests in progress", multiprocess_mode="livesum")
QUEUED: Final = Gauge("protoserve_queued", "Images waiting for inference", multiprocess_mode="livesum")
STAGE_SECONDS: Final = Histogram(
    "protoserve_stage_seconds",
    "Time of one stage of a prediction: read (the body), queue (waiting for an inference thread), decode (with the "
    "wait for a decoding thread), infer (the whole batch), evidence, encode",
    ["stage"],
    buckets=_SECONDS,
)
BATCH_SIZE: Final = Histogram(
    "protoserve_batch_size", "Images in one inference", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
BODY_BYTES: Final = Histogram(
    "protoserve_body_bytes", "Size of request bodies with images", buckets=tuple(4.0**power for power in range(5, 14))
)
IMAGE_PIXELS: Final = Histogram(
    "protoserve_image_pixels", "Pixels of decoded images", buckets=tuple(4.0**power for power in range(5, 14))
)
PREDICTIONS: Final = Counter(
    "protoserve_predictions", "Predicted images, by the node at levels 1 and 2", ["level", "node"]
)
CONFIDENCE: Final = Histogram(
    "protoserve_confidence", "Probability of the predicted node, by level", ["level"], buckets=_SHARES
)
NOVELTY: Final = Counter(
    "protoserve_novelty",
    "Images judged at a parent, by whether they belong to a class that it knows",
    ["parent", "known"],
)
GREATEST_SIMILARITY: Final = Histogram(
    "protoserve_greatest_similarity",
    "Greatest similarity among the evidence for the predicted node, by level; drifts when the images change",
    ["level"],
    buckets=_SIMILARITIES,
)
GRAPHS: Final = Counter(
    "protoserve_graph_images",
    "Images of a model with a routed graph, by where the answer came from: routed (that graph), or the full graph: "
    "asked (the request asked for more), uncertain (the certificate did not hold), alternatives (it did not hold for "
    "the alternatives)",
    ["route"],
)
# Prometheus can only compare with what was 0 before.
for _route in ("routed", "asked", "uncertain", "alternatives"):
    GRAPHS.labels(_route)
FEEDBACK: Final = Counter("protoserve_feedback", "Feedback kept, by verdict", ["verdict"])
for _verdict in ("right", "wrong", "wrong reason"):
    FEEDBACK.labels(_verdict)
FEEDBACK_PICTURES: Final = Counter("protoserve_feedback_pictures", "Pictures received with feedback")
RELOADS: Final = Counter("protoserve_reloads", "Model reloads, by outcome: done or refused", ["outcome"])
# prometheus_client's Info does not support several processes.
MODEL: Final = Gauge(
    "protoserve_model_info",
    "1 for the current model, 0 for earlier ones",
    ["name", "version", "kind", "device"],
    multiprocess_mode="livemax",
)


@cache
def stage_seconds(stage: Stage) -> Histogram:
    """Return the histogram of one stage; cached because `labels` is slow."""
    return STAGE_SECONDS.labels(stage)


def render_metrics() -> bytes:
    """Return the metrics of all workers in Prometheus's text format."""
    if DIRECTORY not in os.environ:
        return generate_latest(PROCESS_REGISTRY)
    registry = CollectorRegistry()
    # prometheus_client does not annotate its functions for several processes.
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def remove_dead_workers() -> None:
    """Remove ended workers from the gauges. Their counters stay, because counters may only grow."""
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
        # Another user's process has this id; it is running.
        return True
    return True


def serve_metrics(folder: Path, port: int) -> None:
    """Serve the metrics of all workers, which `folder` holds, on a port of all addresses until this process ends.

    Raises InputError where the port can't be opened.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise InputError(
            f"PROTOSERVE_METRICS_PORT={port}: cannot listen there ({error.strerror or error}); give another port"
        ) from error


class PredictionCounts:
    """Counts a model's predictions. Bounds the labels to the nodes that it selects from the taxonomy at the start."""

    def __init__(self, table: EvidenceTable) -> None:
        counted = [name for nodes in table.levels[:COUNTED_LEVELS] for name in _names(table, nodes)]
        self._nodes = frozenset(counted)
        inner = dict.fromkeys("/".join(path[:-1]) for path in table.nodes)
        self._parents = frozenset(list(inner)[:MAX_LABELS])

    def count(self, prediction: Prediction, outputs: Outputs) -> None:
        """Count the prediction for one image; `outputs` holds the graph's outputs for this image alone."""
        if outputs.route is not None:
            GRAPHS.labels(str(outputs.route[0])).inc()
        parent = ""
        undecided = True
        for level in prediction.levels:
            label = str(level.level)
            if level.level <= COUNTED_LEVELS:
                PREDICTIONS.labels(label, level.node if level.node in self._nodes else OTHER).inc()
            CONFIDENCE.labels(label).observe(level.probability)
            present = outputs.evidence_prototype[0, level.level - 1] >= 0
            if present.any():
                greatest = np.max(outputs.evidence_similarity[0, level.level - 1][present])
                GREATEST_SIMILARITY.labels(label).observe(float(greatest))
            # Novelty is judged down to the first unknown level, and never for an only child.
            if level.known is not None and undecided and not level.forced:
                parent_label = (parent or ROOT) if parent in self._parents else OTHER
                NOVELTY.labels(parent_label, "true" if level.known else "false").inc()
                undecided = level.known
            parent = level.node


def _names(table: EvidenceTable, nodes: range) -> tuple[str, ...]:
    return tuple(table.names[node] for node in nodes[:MAX_LABELS])

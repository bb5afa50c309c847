"""Measures whether a routed graph pays on this machine: the time of requests through it, beside the full graph's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from export.records import TargetReport
from export.targets.table import target_named
from protoserve.bundle.folder import Bundle
from protoserve.bundle.manifest import Manifest, RoutingRecord
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Engine
from protoserve.inference.options import PredictOptions
from protoserve.networks.head import PrototypeHead
from protoserve.networks.routed_head import RoutedHead

TARGET: Final = "onnx-routed"
# A routed graph is kept if a request takes at most this share of the full graph's time; less is within the noise of a
# measurement this short.
PAYS: Final = 0.97
# Requests timed in each of the two ways, in turns, after this many that are not.
TIMED: Final = 24
WARM: Final = 4


def may_pay(head: PrototypeHead, width: int) -> bool:
    """Whether there is anything to route: a routed head of this `width` would not score all levels as a whole."""
    return head.kind == "hierarchical" and len(RoutedHead(head, 1, width).levels) > 0


def measure_routing(bundle: Bundle, samples: NDArray[np.uint8]) -> RoutingRecord:
    """Time requests with default options, one picture and one thread each, with the routed graph and without it.

    `samples` uint8 [pictures, H, W, 3] are at model size.
    """
    classifier = Classifier(bundle, Engine(bundle, "cpu", 1), "auto", 1)
    options = [PredictOptions().resolved(classifier.table)]
    ratios, routed = np.zeros(TIMED), np.zeros(TIMED, dtype=np.bool_)
    for request in range(-WARM, TIMED):
        picture = samples[request % len(samples)][None]
        seconds = [0.0, 0.0]
        # Each way comes first in turn, as the first may find other caches than the second.
        for way in (0, 1) if request % 2 else (1, 0):
            start = time.perf_counter()
            outputs = classifier.engine.run(picture) if way else classifier.outputs(picture, options)
            seconds[way] = time.perf_counter() - start
            if outputs.route is not None:
                routed[request] = outputs.route[0] == "routed"
        ratios[request] = seconds[0] / seconds[1]
    ratio = expected_ratio(ratios, routed)
    return RoutingRecord(ratio=ratio, requests=TIMED, routed=float(routed.mean()), kept=ratio <= PAYS)


def expected_ratio(ratios: NDArray[np.float64], routed: NDArray[np.bool_]) -> float:
    """Return the expected time of a request, in that of the full graph, from `ratios` [requests] of such times.

    A request that was not `routed` bool [requests] costs the full graph in addition. Medians, because other processes
    disturb single requests.

    >>> expected_ratio(np.array([0.7, 0.5, 1.6, 0.6]), np.array([True, True, False, True]))
    0.85
    """
    if not routed.any():
        return float(np.median(ratios))
    return float(np.median(ratios[routed]) + (1.0 - routed.mean()))


def with_routing(
    draft: Path,
    manifest: Callable[[str], Manifest],
    reports: dict[str, TargetReport],
    samples: NDArray[np.uint8],
) -> Callable[[str], Manifest]:
    """Time the routed graph of a draft; remove it and its parity report unless it pays.

    Returns what makes the draft's manifest for a content version, from `manifest`, which does not know of the graph.
    """
    file = target_named(TARGET).file
    files = {**manifest("").files, TARGET: file}
    record = measure_routing(Bundle(draft, manifest("").model_copy(update={"files": files})), samples)
    kept = files if record.kept else manifest("").files
    if not record.kept:
        (draft / file).unlink()
        del reports[TARGET]
    return lambda version: manifest(version).model_copy(update={"files": kept, "routing": record})

"""Additivity: do prior and contributions add up to the logit, and is every stated contribution the prototype's own?"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.intervals import compare_known
from protoserve.audit.subject import Subject
from protoserve.bundle.truth_card import Additivity
from protoserve.inference.engine import Outputs

TOLERANCE: Final = 1e-4


def additivity(subject: Subject, outputs: Outputs, seed: int) -> Additivity:
    """Measure how exactly the evidence of `outputs` adds up, for all nodes on the predicted paths.

    The contributions are computed in float64 from the graph's similarities and the bundle's `weights.npy`; the logits
    are the graph's. The baseline of the gap takes the contributions of the next image.
    """
    images = len(outputs)
    gaps = np.full((2, images), np.nan)
    largest_logit = piece_gap = 0.0
    for image, level in np.argwhere(outputs.path >= 0).tolist():
        node = int(outputs.path[image, level])
        if node not in subject.places:
            continue
        logit = float(outputs.logit[image, node])
        largest_logit = max(largest_logit, abs(logit))
        for row, source in enumerate((image, (image + 1) % images)):
            total = subject.contributions(node, outputs.similarity[source])[1].sum()
            gaps[row, image] = np.fmax(gaps[row, image], abs(logit - float(subject.prior[node] + total)))
        piece_gap = max(piece_gap, _piece_gap(subject, outputs, image, level, node))
    return Additivity(
        largest_gap=_largest(gaps[0]),
        largest_piece_gap=piece_gap,
        tolerance=TOLERANCE * max(1.0, largest_logit),
        gap=compare_known(gaps[0], gaps[1], seed),
    )


def _piece_gap(subject: Subject, outputs: Outputs, image: int, level: int, node: int) -> float:
    """The largest difference between a stated contribution and the prototype's own, for and against a node."""
    prototypes, contributions = subject.contributions(node, outputs.similarity[image])
    own = dict(zip(prototypes.tolist(), contributions.tolist(), strict=True))
    largest = 0.0
    for kind in ("evidence", "against"):
        shown = getattr(outputs, f"{kind}_prototype")[image, level].tolist()
        stated = getattr(outputs, f"{kind}_contribution")[image, level].tolist()
        for prototype, contribution in zip(shown, stated, strict=True):
            if prototype >= 0:
                # A prototype of another group contributes nothing to this node.
                largest = max(largest, abs(contribution - own.get(prototype, 0.0)))
    return largest


def _largest(gaps: NDArray[np.float64]) -> float:
    return float(np.nanmax(gaps)) if np.isfinite(gaps).any() else 0.0

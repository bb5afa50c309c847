"""A reliability diagram per level."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from protoserve.scores import BINS, calibration_scores, confidences, reliability
from protoserve.taxonomy import Taxonomy


def plot_reliability(
    before: NDArray[np.float32], after: NDArray[np.float32], leaves: NDArray[np.int64], taxonomy: Taxonomy, name: str
) -> bytes:
    """A reliability diagram per level as PNG: accuracy against confidence before and after calibration, the area of a
    point growing with its bin's images. `before` and `after` are log-probabilities [images, nodes]."""
    from matplotlib.figure import Figure

    points = [confidences(log_probability, leaves, taxonomy) for log_probability in (before, after)]
    errors = [
        calibration_scores(log_probability, leaves, taxonomy)["expected_calibration_error"]
        for log_probability in (before, after)
    ]
    levels = [f"level_{level + 1}" for level in range(taxonomy.depth)]
    figure = Figure(figsize=(4.2 * len(levels), 4.4), layout="constrained")
    for axes, level in zip(np.atleast_1d(figure.subplots(1, len(levels))), levels, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for found, error, label in zip(points, errors, ("before", "after"), strict=True):
            counts, mean, accuracy = reliability(*found[level])
            full = counts > 0
            axes.plot(mean[full], accuracy[full], linewidth=1, label=f"{label}, error {error[level]:.3f}")
            axes.scatter(mean[full], accuracy[full], s=4 + 160 * counts[full] / counts.sum())
        axes.set(title=level.replace("_", " "), xlabel="probability", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=False)
    figure.suptitle(f"{name}: {len(leaves)} images, {BINS} bins")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()

"""Scores of predictions, computed from arrays: the same code for a run's network and for an exported bundle.

Let *t* be an image's true leaf, *p* the predicted leaf, and *c* their lowest common ancestor, which may be the root.
The height of *c* is the depth of *t* minus the depth of *c*, where the root has depth 0. It is counted from *t* because
leaves below the same node may have different depths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import MissingExtraError
from protoserve.run.records import CalibrationScores, HierarchicalScores, Scores, SiblingsScore
from protoserve.taxonomy import ROOT, Taxonomy

BINS = 15


def scores(log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy) -> Scores:
    """Compute all scores of a data set.

    `log_probability` [images, nodes] are natural logarithms; `leaves` int64 [images] are the indices of the true leaves
    in `taxonomy.leaves`; of images that are labelled only down to an inner node, in `taxonomy.label_nodes`. Such an
    image counts at the levels down to its node, and in `siblings`; all else is of the images that are labelled down to
    a leaf. The predicted path is that of the most probable leaf, so levels never contradict each other. Level k
    compares the nodes at depth k, or the leaf itself if its depth is less.

    - `images`: their number, and `inner`: how many of them are labelled only down to an inner node; `accuracy` by level
      (`level_1` …, `leaf`); `macro_accuracy`: the mean recall of the leaves that occur;
    - `mistake_severity`: the mean height of *c* over the mistakes, in levels, None without any; and
      `hierarchical_distance`: the same over all images (Bertinetto et al. 2020);
    - `hierarchical`: `precision`, `recall` and `f1` of the predicted path's nodes against the true path's, pooled over
      the images, without the root (Kiritchenko et al. 2005);
    - `negative_log_likelihood` and `expected_calibration_error` (Guo et al. 2017), by level like `accuracy`;
    - `siblings`: for each parent with two or more children, the number of `images` below it and the `accuracy` of
      choosing among its children alone.

    Raises MissingExtraError without scikit-learn.
    """
    try:
        from sklearn.metrics import accuracy_score, recall_score
    except ModuleNotFoundError as error:
        raise MissingExtraError("scoring a data set", "train") from error

    predicted = log_probability[:, taxonomy.leaf_nodes].argmax(axis=1)
    accuracy = {}
    for name, column in _level_table(taxonomy).items():
        labelled = column[leaves] >= 0
        accuracy[name] = float(accuracy_score(column[leaves[labelled]], column[predicted[labelled]]))
    to_leaf = leaves < len(taxonomy.leaves)
    predicted, true = predicted[to_leaf], leaves[to_leaf]
    macro = recall_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0.0)
    confusion = sibling_confusion(log_probability, leaves, taxonomy)
    calibration = calibration_scores(log_probability, leaves, taxonomy)
    severity, distance = _heights(predicted, true, taxonomy)
    return Scores(
        images=len(leaves),
        inner=int((~to_leaf).sum()),
        accuracy=accuracy,
        macro_accuracy=float(macro),
        mistake_severity=severity,
        hierarchical_distance=distance,
        hierarchical=_hierarchical(predicted, true, taxonomy),
        negative_log_likelihood=calibration.negative_log_likelihood,
        expected_calibration_error=calibration.expected_calibration_error,
        siblings={
            parent: SiblingsScore(images=int(counts.sum()), accuracy=float(np.trace(counts) / counts.sum()))
            for parent, counts in confusion.items()
        },
    )


def calibration_scores(
    log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy
) -> CalibrationScores:
    """Compute `negative_log_likelihood` and `expected_calibration_error` by level; arguments as in `scores`."""
    exact = log_probability.astype(np.float64)
    negative_log_likelihood = {}
    for name, column in _level_table(taxonomy).items():
        labelled = np.flatnonzero(column[leaves] >= 0)
        negative_log_likelihood[name] = float(-exact[labelled, column[leaves[labelled]]].mean())
    error = {
        name: expected_calibration_error(confidence, correct)
        for name, (confidence, correct) in confidences(log_probability, leaves, taxonomy).items()
    }
    return CalibrationScores(negative_log_likelihood=negative_log_likelihood, expected_calibration_error=error)


def confidences(
    log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Return, by level, the probability of each image's predicted node, float64 [images] in [0, 1], and whether that
    node is the true one, bool [images]; arguments as in `scores`. Images whose label ends above a level are not among
    the level's."""
    predicted = log_probability[:, taxonomy.leaf_nodes].argmax(axis=1)
    levels = {}
    for name, column in _level_table(taxonomy).items():
        rows = np.flatnonzero(column[leaves] >= 0)
        node = column[predicted[rows]]
        # A sum of float32 probabilities may exceed 1 by one unit in the last place.
        confidence = np.exp(np.minimum(log_probability[rows, node].astype(np.float64), 0.0))
        levels[name] = (confidence, node == column[leaves[rows]])
    return levels


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Compute Σ over bins of (share of images) × |accuracy − mean confidence|, in [0, 1] (Guo et al. 2017, eq. 3).

    `confidence` [images] in [0, 1] is divided into `bins` of equal width, each open on the left and closed on the
    right.

    >>> expected_calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False]))
    0.15000000000000002
    """
    counts, mean, accuracy = reliability(confidence, correct, bins)
    return float((counts * np.abs(accuracy - mean)).sum() / max(1, counts.sum()))


def reliability(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return, for each bin, the number of images, their mean confidence and their accuracy; both are 0 in an empty
    bin."""
    bin_index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(bin_index, minlength=bins)
    divisor = np.maximum(counts, 1)
    mean = np.bincount(bin_index, weights=confidence, minlength=bins) / divisor
    accuracy = np.bincount(bin_index, weights=correct.astype(np.float64), minlength=bins) / divisor
    return counts, mean, accuracy


def sibling_confusion(
    log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy
) -> dict[str, NDArray[np.int64]]:
    """Return the confusion matrix among the children of each parent (`""` is the root) that has at least two children
    and images below it.

    Each is int64 [children, children]: how many images of one child (row) are most probably of another (column) when
    only siblings compete.
    """
    from sklearn.metrics import confusion_matrix

    path = taxonomy.path_at_level[taxonomy.label_nodes]
    matrices = {}
    for group in taxonomy.groups:
        first, size = group.children[0], len(group.children)
        own = path[leaves, len(taxonomy.nodes[first]) - 1] - first
        below = np.flatnonzero((own >= 0) & (own < size))
        if len(below):
            chosen = log_probability[below, first : first + size].argmax(axis=1)
            name = "" if group.parent == ROOT else taxonomy.names[group.parent]
            matrices[name] = confusion_matrix(own[below], chosen, labels=np.arange(size)).astype(np.int64)
    return matrices


def _heights(predicted: NDArray[np.int64], leaves: NDArray[np.int64], taxonomy: Taxonomy) -> tuple[float | None, float]:
    """Compute `mistake_severity` and `hierarchical_distance`; see `scores`."""
    depth, shared = _depths(predicted, leaves, taxonomy)
    height = depth[leaves] - shared
    mistaken = predicted != leaves
    return float(height[mistaken].mean()) if mistaken.any() else None, float(height.mean())


def _hierarchical(predicted: NDArray[np.int64], leaves: NDArray[np.int64], taxonomy: Taxonomy) -> HierarchicalScores:
    """Compute `hierarchical`; see `scores`."""
    depth, shared = _depths(predicted, leaves, taxonomy)
    precision, recall = shared.sum() / depth[predicted].sum(), shared.sum() / depth[leaves].sum()
    total = precision + recall
    return HierarchicalScores(
        precision=float(precision), recall=float(recall), f1=float(2 * precision * recall / total) if total else 0.0
    )


def _depths(
    predicted: NDArray[np.int64], leaves: NDArray[np.int64], taxonomy: Taxonomy
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the depth of every leaf [leaves], and the number of nodes that each image's two paths share [images]."""
    path = taxonomy.path_at_level[list(taxonomy.leaves)]
    # In a tree, two paths share exactly the nodes down to their lowest common ancestor.
    shared = ((path[predicted] == path[leaves]) & (path[leaves] >= 0)).sum(axis=1)
    return (path >= 0).sum(axis=1), shared


def _level_table(taxonomy: Taxonomy) -> dict[str, NDArray[np.int64]]:
    """Map each level's name to the node of every label at that level, int64 [labels]; −1 below an inner label."""
    count = len(taxonomy.leaves)
    inner = taxonomy.path_at_level[taxonomy.label_nodes[count:]]
    table = np.concatenate([taxonomy.level_of_leaf, inner])
    levels = {f"level_{level + 1}": table[:, level] for level in range(taxonomy.depth)}
    return {**levels, "leaf": np.concatenate([taxonomy.leaf_nodes, np.full(len(inner), -1, dtype=np.int64)])}

"""Scores from arrays: the same code for a run's network and for an exported bundle.

Let *t* be an image's true leaf, *p* the predicted one, and *c* their lowest common ancestor, which may be the root. In
an uneven tree a node has no one height, so the height of *c* is counted from the true leaf: the levels that one must go
up before the prediction is right. The root's depth is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import MissingExtraError
from protoserve.taxonomy import ROOT, Taxonomy

BINS = 15


def scores(log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy) -> dict[str, Any]:
    """All scores of a data set, as JSON-ready numbers.

    `log_probability` [images, nodes], natural logarithms; `leaves` int [images], the true places in
    `taxonomy.leaves`. The predicted path is that of the most probable leaf, so levels never contradict. Level k counts
    the node at depth k, or the leaf itself where it stands higher.

    - `images`; `accuracy` of `level_1` … and `leaf`; `macro_accuracy`, the mean recall over the leaves that occur;
    - `mistake_severity`, the mean height of *c* over the mistakes, null without any, and `hierarchical_distance`, the
      same over all images (Bertinetto et al. 2020), in levels;
    - `hierarchical`: `precision`, `recall` and `f1` of the predicted path's nodes against the true path's, pooled over
      the images, the root not counted (Kiritchenko et al. 2005);
    - `negative_log_likelihood` and `expected_calibration_error` (Guo et al. 2017) per level, as `accuracy`;
    - `siblings`, per parent with two or more children: the `images` below it and the `accuracy` of choosing their child
      among these alone.
    """
    try:
        from sklearn.metrics import accuracy_score, recall_score
    except ModuleNotFoundError as error:
        raise MissingExtraError("scoring a data set", "train") from error

    predicted = log_probability[:, list(taxonomy.leaves)].argmax(axis=1)
    table = _level_table(taxonomy)
    accuracy = {name: float(accuracy_score(column[leaves], column[predicted])) for name, column in table.items()}
    macro = recall_score(leaves, predicted, labels=np.unique(leaves), average="macro", zero_division=0.0)
    confusion = sibling_confusion(log_probability, leaves, taxonomy)
    return {
        "images": len(leaves),
        "accuracy": accuracy,
        "macro_accuracy": float(macro),
        **_hierarchical(predicted, leaves, taxonomy),
        **calibration_scores(log_probability, leaves, taxonomy),
        "siblings": {
            parent: {"images": int(counts.sum()), "accuracy": float(np.trace(counts) / counts.sum())}
            for parent, counts in confusion.items()
        },
    }


def calibration_scores(
    log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy
) -> dict[str, Any]:
    """`negative_log_likelihood` and `expected_calibration_error` per level; arguments as in `scores`."""
    logarithms = log_probability.astype(np.float64)
    rows = np.arange(len(leaves))
    likelihood = {
        name: float(-logarithms[rows, column[leaves]].mean()) for name, column in _level_table(taxonomy).items()
    }
    error = {
        name: expected_calibration_error(*points)
        for name, points in confidences(log_probability, leaves, taxonomy).items()
    }
    return {"negative_log_likelihood": likelihood, "expected_calibration_error": error}


def confidences(
    log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Per level, for every image: the probability of the predicted node, float64 [images] in [0, 1], and whether that
    node is the true one, bool [images]."""
    predicted = log_probability[:, list(taxonomy.leaves)].argmax(axis=1)
    rows = np.arange(len(leaves))
    found = {}
    for name, column in _level_table(taxonomy).items():
        node = column[predicted]
        # A sum of float32 probabilities may pass 1 by an ulp.
        confidence = np.exp(np.minimum(log_probability[rows, node].astype(np.float64), 0.0))
        found[name] = (confidence, node == column[leaves])
    return found


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """Σ over bins of (share of images) × |accuracy − mean confidence|, in [0, 1] (Guo et al. 2017, eq. 3).

    `confidence` [images] in [0, 1] falls into `bins` of equal width, each open on the left and closed on the right.

    >>> expected_calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False]))
    0.15000000000000002
    """
    counts, mean, accuracy = reliability(confidence, correct, bins)
    return float((counts * np.abs(accuracy - mean)).sum() / max(1, counts.sum()))


def reliability(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Per bin: the number of images, their mean confidence and their accuracy, both 0 in an empty bin."""
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    present = np.maximum(counts, 1)
    mean = np.bincount(place, weights=confidence, minlength=bins) / present
    accuracy = np.bincount(place, weights=correct.astype(np.float64), minlength=bins) / present
    return counts, mean, accuracy


def sibling_confusion(
    log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy
) -> dict[str, NDArray[np.int64]]:
    """Per parent (`""` is the root) with two or more children and images below it: int [children, children], how many
    images of each child (rows) would be put into each (columns), had one to choose among the siblings alone."""
    from sklearn.metrics import confusion_matrix

    path = taxonomy.path_at_level[list(taxonomy.leaves)]
    found = {}
    for group in taxonomy.groups:
        first, size = group.children[0], len(group.children)
        own = path[leaves, len(taxonomy.nodes[first]) - 1] - first
        below = np.flatnonzero((own >= 0) & (own < size))
        if len(below):
            chosen = log_probability[below, first : first + size].argmax(axis=1)
            name = "" if group.parent == ROOT else taxonomy.names[group.parent]
            found[name] = confusion_matrix(own[below], chosen, labels=np.arange(size)).astype(np.int64)
    return found


def _hierarchical(predicted: NDArray[np.int64], leaves: NDArray[np.int64], taxonomy: Taxonomy) -> dict[str, Any]:
    path = taxonomy.path_at_level[list(taxonomy.leaves)]
    depth = (path >= 0).sum(axis=1)
    # Two paths that part never meet again, so the nodes they share are those down to their lowest common ancestor.
    shared = ((path[predicted] == path[leaves]) & (path[leaves] >= 0)).sum(axis=1)
    height = depth[leaves] - shared
    mistaken = predicted != leaves
    precision, recall = shared.sum() / depth[predicted].sum(), shared.sum() / depth[leaves].sum()
    both = precision + recall
    return {
        "mistake_severity": float(height[mistaken].mean()) if mistaken.any() else None,
        "hierarchical_distance": float(height.mean()),
        "hierarchical": {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(2 * precision * recall / both) if both else 0.0,
        },
    }


def _level_table(taxonomy: Taxonomy) -> dict[str, NDArray[np.int64]]:
    """From a level's name to the node [leaves] that each leaf has there."""
    table = taxonomy.level_of_leaf
    levels = {f"level_{level + 1}": table[:, level] for level in range(taxonomy.depth)}
    return {**levels, "leaf": np.array(taxonomy.leaves, dtype=np.int64)}

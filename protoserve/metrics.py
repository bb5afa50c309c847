"""Scores per level from arrays: the same code for a run's network and for an exported bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import MissingExtraError
from protoserve.taxonomy import Taxonomy


def scores(log_probability: NDArray[np.floating[Any]], leaves: NDArray[np.int64], taxonomy: Taxonomy) -> dict[str, Any]:
    """Accuracy per level and over leaves.

    `log_probability` [images, nodes]; `leaves` int [images], the true places in `taxonomy.leaves`. The predicted
    path is that of the most probable leaf, so levels never contradict. Level k counts the node at depth k, or the
    leaf itself where it stands higher. `macro_accuracy` is the mean recall over the leaves that occur.
    Returns `{"images", "accuracy": {"level_1", …, "leaf"}, "macro_accuracy"}`, fractions in [0, 1].
    """
    try:
        from sklearn.metrics import accuracy_score, recall_score
    except ModuleNotFoundError as error:
        raise MissingExtraError("scoring a data set", "train") from error

    predicted = log_probability[:, list(taxonomy.leaves)].argmax(axis=1)
    table = taxonomy.level_of_leaf
    accuracy = {
        f"level_{level + 1}": float(accuracy_score(table[leaves, level], table[predicted, level]))
        for level in range(taxonomy.depth)
    }
    accuracy["leaf"] = float(accuracy_score(leaves, predicted))
    macro = recall_score(leaves, predicted, labels=np.unique(leaves), average="macro", zero_division=0.0)
    return {"images": len(leaves), "accuracy": accuracy, "macro_accuracy": float(macro)}

import numpy as np
import pytest

from protoserve.metrics import scores
from protoserve.taxonomy import Taxonomy


def test_scores_of_a_worked_example():
    taxonomy = Taxonomy.from_paths(["A/x", "A/y", "B/u", "Q"])
    leaves = [taxonomy.names[leaf] for leaf in taxonomy.leaves]
    truth = ["A/x", "A/x", "A/x", "A/y", "B/u", "Q"]
    predicted = ["A/x", "A/y", "B/u", "A/y", "Q", "Q"]
    log_probability = np.full((6, len(taxonomy.nodes)), -5.0)
    for row, name in enumerate(predicted):
        log_probability[row, taxonomy.index[name]] = -0.1
    # An inner node that seems more probable than the leaf's own path changes nothing: the path is the leaf's.
    log_probability[0, taxonomy.index["B"]] = 0.0

    found = scores(log_probability, np.array([leaves.index(name) for name in truth]), taxonomy)

    # Level 1: right but for the third and fifth; a leaf that stands higher is its own node at every deeper level.
    assert found["accuracy"] == {
        "level_1": pytest.approx(4 / 6),
        "level_2": pytest.approx(3 / 6),
        "leaf": pytest.approx(3 / 6),
    }
    # Recall 1/3 of A/x, 1 of A/y, 0 of B/u, 1 of Q.
    assert found["macro_accuracy"] == pytest.approx((1 / 3 + 1 + 0 + 1) / 4)
    assert found["images"] == 6

"""Accuracies, calibration and confusion of worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.run.records import HierarchicalScores, Scores, SiblingsScore
from protoserve.scores import calibration_scores, expected_calibration_error, reliability, scores, sibling_confusion
from protoserve.taxonomy import Taxonomy

# Leaves at depths 1, 2 and 3.
TREE = Taxonomy.from_paths(["A/x/i", "A/x/j", "A/y", "B/u", "B/v", "Q"])
LEAVES = [TREE.names[leaf] for leaf in TREE.leaves]


def places(*names: str) -> NDArray[np.int64]:
    return np.array([LEAVES.index(name) for name in names])


def answers(*rows: dict[str, float]) -> NDArray[np.float64]:
    """log-probabilities [images, nodes] from the leaves' probabilities; every other leaf has almost none."""
    leaf = np.array([[row.get(name, 1e-9) for name in LEAVES] for row in rows])
    return np.asarray(np.log(leaf @ TREE.leaves_below.T))


def hierarchical_of(found: Scores) -> HierarchicalScores:
    assert found.hierarchical is not None
    return found.hierarchical


def test_scores_of_a_worked_example() -> None:
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
    assert found.accuracy == {
        "level_1": pytest.approx(4 / 6),
        "level_2": pytest.approx(3 / 6),
        "leaf": pytest.approx(3 / 6),
    }
    # Recall 1/3 of A/x, 1 of A/y, 0 of B/u, 1 of Q.
    assert found.macro_accuracy == pytest.approx((1 / 3 + 1 + 0 + 1) / 4)
    assert found.images == 6


def test_mistakes_are_as_severe_as_the_way_up_to_the_common_ancestor() -> None:
    truth = places("A/x/i", "A/x/i", "A/x/i", "A/x/i", "A/y", "B/u", "Q")
    predicted = ["A/x/i", "A/x/j", "A/y", "Q", "A/x/i", "B/u", "A/x/j"]
    found = scores(answers(*({name: 1.0} for name in predicted)), truth, TREE)
    # Levels up from the true leaf: 0 (right), 1 to A/x, 2 to A, 3 to the root; 1 from A/y to A; 0; 1 from Q to it.
    assert found.mistake_severity == pytest.approx((1 + 2 + 3 + 1 + 1) / 5)
    assert found.hierarchical_distance == pytest.approx((1 + 2 + 3 + 1 + 1) / 7)
    # Nodes of both paths: 3, 2 (A, A/x), 1 (A), 0, 1 (A), 2, 0. Nodes predicted: 3 3 2 1 3 2 3; true: 3 3 3 3 2 2 1.
    precision, recall = 9 / 17, 9 / 17
    assert hierarchical_of(found).precision == pytest.approx(precision)
    assert hierarchical_of(found).recall == pytest.approx(recall)
    assert hierarchical_of(found).f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_hierarchical_precision_and_recall_differ_where_paths_have_different_lengths() -> None:
    found = hierarchical_of(scores(answers({"A/y": 1.0}), places("A/x/i"), TREE))
    assert (found.precision, found.recall) == pytest.approx((1 / 2, 1 / 3))
    assert found.f1 == pytest.approx(2 * (1 / 6) / (5 / 6))


def test_without_mistakes_there_is_no_severity() -> None:
    found = scores(answers({"Q": 1.0}), places("Q"), TREE)
    assert found.mistake_severity is None
    assert found.hierarchical_distance == 0.0
    assert found.hierarchical == HierarchicalScores(precision=1.0, recall=1.0, f1=1.0)


def test_nothing_in_common_is_an_f1_of_zero() -> None:
    assert hierarchical_of(scores(answers({"Q": 1.0}), places("B/u"), TREE)).f1 == 0.0


def test_likelihood_and_calibration_error_per_level() -> None:
    # Two images of A/x/i: the path's probabilities are A 0.9, A/x 0.7, A/x/i 0.6; the second one is predicted as Q.
    rows = [{"A/x/i": 0.6, "A/x/j": 0.1, "A/y": 0.2, "Q": 0.1}, {"A/x/i": 0.3, "Q": 0.7}]
    found = calibration_scores(answers(*rows), places("A/x/i", "A/x/i"), TREE)
    likelihood, error = found.negative_log_likelihood, found.expected_calibration_error
    assert likelihood["level_1"] == pytest.approx(-(np.log(0.9) + np.log(0.3)) / 2)
    assert likelihood["level_2"] == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
    assert likelihood["leaf"] == likelihood["level_3"] == pytest.approx(-(np.log(0.6) + np.log(0.3)) / 2)
    # Right with 0.9, wrong with 0.7, in different bins; at level 2 both fall into (10/15, 11/15].
    assert error["level_1"] == pytest.approx((0.1 + 0.7) / 2)
    assert error["level_2"] == pytest.approx(abs(1 / 2 - 0.7))
    assert error["leaf"] == pytest.approx((0.4 + 0.7) / 2)


def test_bins_are_closed_on_the_right() -> None:
    counts, mean, accuracy = reliability(np.array([0.0, 0.5, 0.5 + 1e-9, 1.0]), np.array([1, 0, 1, 1], dtype=bool), 2)
    assert counts.tolist() == [2, 2]
    assert mean.tolist() == pytest.approx([0.25, 0.75])
    assert accuracy.tolist() == pytest.approx([0.5, 1.0])


def test_calibration_error_against_a_loop_over_bins() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(500)
    correct = generator.random(500) < confidence**2
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def test_sibling_confusion_compares_siblings_alone() -> None:
    rows = [
        {"A/x/i": 0.3, "A/x/j": 0.1, "Q": 0.6},
        {"A/x/j": 0.9},
        {"A/y": 0.6, "A/x/i": 0.3},
        {"B/u": 0.9},
        {"Q": 0.9},
    ]
    truth = places("A/x/i", "A/x/i", "A/y", "A/y", "Q")
    found = sibling_confusion(answers(*rows), truth, TREE)
    # Nobody below B. Below the root: three A's, one put into Q, one into B; the root's children are A, B, Q.
    assert set(found) == {"", "A", "A/x"}
    assert found[""].tolist() == [[2, 1, 1], [0, 0, 0], [0, 0, 1]]
    # Both of A/x stay in A/x, though the first one seems to be Q; both of A/y in A/y but for the fourth, a tie of
    # almost nothing that goes to A/x, whose two leaves have twice as much.
    assert found["A"].tolist() == [[2, 0], [1, 1]]
    assert found["A/x"].tolist() == [[1, 1], [0, 0]]
    siblings = scores(answers(*rows), truth, TREE).siblings
    assert siblings["A"] == SiblingsScore(images=4, accuracy=0.75)
    assert siblings["A/x"] == SiblingsScore(images=2, accuracy=0.5)


def test_a_picture_of_an_inner_node_counts_down_to_there() -> None:
    # The labels after the leaves are the inner nodes A, B and A/x, in this order.
    inner = {TREE.names[node]: label for label, node in enumerate(TREE.label_nodes)}
    rows = answers({"A/x/i": 0.9}, {"A/x/j": 0.8}, {"B/u": 0.7}, {"A/y": 0.9})
    truth = np.array([inner["A/x/i"], inner["A/x"], inner["A/x"], inner["A"]])
    found, leaf = scores(rows, truth, TREE), scores(rows[:1], truth[:1], TREE)
    assert (found.images, found.inner) == (4, 3)
    assert found.accuracy == {"level_1": 3 / 4, "level_2": pytest.approx(2 / 3), "level_3": 1.0, "leaf": 1.0}
    assert (found.siblings[""].images, found.siblings["A"].images, found.siblings["A/x"].images) == (4, 3, 1)
    for name in ("macro_accuracy", "mistake_severity", "hierarchical_distance", "hierarchical"):
        assert getattr(found, name) == getattr(leaf, name), name
    for name in ("level_3", "leaf"):
        assert found.negative_log_likelihood[name] == leaf.negative_log_likelihood[name]
        assert found.expected_calibration_error[name] == leaf.expected_calibration_error[name]
    assert found.negative_log_likelihood["level_2"] == pytest.approx(-rows[:3, TREE.index["A/x"]].mean())

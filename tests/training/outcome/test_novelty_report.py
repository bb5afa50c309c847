"""The report on novel images, against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from protoserve.data.dataset import Dataset
from protoserve.novelty import SCORES, NoveltyTable
from protoserve.schema import NoveltyRecord
from protoserve.taxonomy import ROOT, Taxonomy
from training.loop.answers import Answers
from training.outcome.novelty_report import known_shares, novelty_report

# A(0) B(1) C(2) | A/x(3) A/y(4) C/only(5); leaves B, A/x, A/y, C/only.
TREE = Taxonomy.from_paths(["A/x", "A/y", "B", "C/only"])
LEAVES = [TREE.names[leaf] for leaf in TREE.leaves]
TABLE = NoveltyTable.of(TREE, "hierarchical", [0, 1, 2, 3, 4])


def answers(predicted: list[str], root: list[float], below_a: list[float]) -> Answers:
    """Answers with the given most probable leaves, and every score of the two groups."""
    log_probability = np.full((len(predicted), len(TREE.nodes)), -9.0, dtype=np.float32)
    for row, name in enumerate(predicted):
        log_probability[row, [node for node in TREE.path_at_level[TREE.index[name]] if node >= 0]] = -0.1
    scores = np.array([root, below_a], dtype=np.float32).T
    return Answers(log_probability, log_probability, dict.fromkeys(SCORES, scores))


KNOWN = answers(["A/x", "A/x", "A/y", "B"], [5, 6, 7, 8], [5, 3, 4, 0])
KNOWN_LEAVES = np.array([LEAVES.index(name) for name in ("A/x", "A/y", "A/y", "B")])
# Two novel kinds of A, one of them taken for B; one beside all; one below C, where nothing competes.
NOVEL = answers(["A/x", "B", "B", "C/only"], [9, 4, 5, 9], [1, 4, 9, 9])
ANCESTOR = np.array([0, 0, ROOT, 2])
RECORD = NoveltyRecord(score="energy", true_positive_rate=0.95, thresholds={"": 5.0, "A": 3.5})


def report(thresholds: NoveltyRecord | None = RECORD) -> dict[str, Any]:
    return novelty_report(KNOWN, KNOWN_LEAVES, NOVEL, ANCESTOR, TABLE, TREE, thresholds)


def test_each_parent_compares_known_images_below_it_with_novel_ones() -> None:
    found = report()["parents"]
    assert set(found) == {"", "A"}
    assert (found["A"]["novel_images"], found["A"]["known_images"]) == (2, 3)
    assert (found[""]["novel_images"], found[""]["known_images"]) == (1, 4)
    # Known 5, 3, 4 against novel 1 and 4: of six pairs, five are right or even (4 = 4 counts a half).
    assert found["A"]["scores"]["energy"]["auroc"] == pytest.approx((3 + 1 + 0.5) / 6)
    # 95 % of three is all three, so the threshold is 3, which one of two novel images reaches.
    assert found["A"]["scores"]["energy"]["fpr95"] == 0.5
    assert found[""]["scores"]["similarity"] == {"auroc": pytest.approx((0.5 + 3) / 4), "fpr95": 1.0}


def test_the_runs_thresholds_are_scored() -> None:
    found = report()
    assert found["parents"]["A"]["rejected"] == 0.5
    assert found["parents"]["A"]["falsely_rejected"] == pytest.approx(1 / 3)
    # First: known at the root (9 ≥ 5), not below A (1 < 3.5): known through level 1, as deep as it is known. Second:
    # 4 < 5, known nowhere. Third: 5 ≥ 5, taken for B, known: not detected. Fourth: known as C/only, too deep.
    assert found["detected"] == 0.5
    # Known ones: 5, 4 and B pass, the second fails with 3 < 3.5.
    assert found["known_throughout"] == 0.75
    without = report(None)
    assert "detected" not in without and "rejected" not in without["parents"]["A"]


def test_level_1_counts_images_that_are_known_there() -> None:
    # A/x and B for two of A, C/only for the one of C; the image beside all has no right node.
    assert report()["right_level_1"] == pytest.approx(2 / 3)
    assert report()["parents"]["A"]["right_level_1"] == 0.5 and report()["parents"][""]["right_level_1"] is None
    assert report()["undecided"] == 1 and report()["images"] == 4


def test_a_parent_without_known_images_has_no_auroc() -> None:
    found = novelty_report(KNOWN, np.full(4, LEAVES.index("B")), NOVEL, ANCESTOR, TABLE, TREE, RECORD)
    assert found["parents"]["A"]["scores"]["energy"] == {"auroc": None, "fpr95": None}
    assert found["parents"]["A"]["falsely_rejected"] is None


def test_without_a_hierarchy_every_novel_image_is_scored_in_the_one_group() -> None:
    table = NoveltyTable.of(TREE, "flat", [])
    scores = np.array([[3.0], [2.0], [4.0], [1.0]], dtype=np.float32)
    known = KNOWN._replace(novelty={"energy": scores + 1, "probability": scores})
    novel = NOVEL._replace(novelty={"energy": scores, "probability": scores})
    found = novelty_report(known, KNOWN_LEAVES, novel, ANCESTOR, table, TREE, None)
    assert set(found["parents"]) == {""} and found["undecided"] == 0
    expected = roc_auc_score([1] * 4 + [0] * 4, [4, 3, 5, 2, 3, 2, 4, 1])
    assert found["parents"][""]["scores"]["energy"]["auroc"] == pytest.approx(expected)


def test_shares_of_known_images_count_every_parent_that_an_image_lies_below() -> None:
    images = tuple(f"test/{number}.png" for number in range(4))
    dataset = Dataset(Path("data"), "test", TREE, images, KNOWN_LEAVES)
    found = known_shares(KNOWN, dataset, TABLE, RECORD)
    # At the root all four reach 5; of 5, 3 and 4 below A two reach 3.5. The second fails at A alone.
    assert found == {"known_at_parents": pytest.approx(6 / 7), "known_throughout": 0.75}
    # A parent without a threshold accepts everything.
    root_alone = RECORD.model_copy(update={"thresholds": {"": 6.5}})
    assert known_shares(KNOWN, dataset, TABLE, root_alone) == {
        "known_at_parents": pytest.approx((2 + 3) / 7),
        "known_throughout": 0.5,
    }

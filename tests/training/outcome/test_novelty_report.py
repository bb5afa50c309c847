"""The report on novel images against numbers worked by hand, and a run that leaves classes out, from end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from protoserve.cli.root import build_app
from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.errors import InputError, TaxonomyError
from protoserve.novelty import SCORES, NoveltyTable
from protoserve.schema import NoveltyRecord
from protoserve.taxonomy import ROOT, Taxonomy
from training.config import parse_config
from training.data.splits import read_splits
from training.loop.answers import Answers, images_below
from training.outcome.novelty_report import novelty_report
from training.rendered import render_dataset
from training.running import train

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


def report(thresholds: NoveltyRecord | None = RECORD) -> dict:
    return novelty_report(KNOWN, KNOWN_LEAVES, NOVEL, ANCESTOR, TABLE, TREE, thresholds)


def test_each_parent_compares_what_is_known_below_it_with_what_is_not() -> None:
    found = report()["parents"]
    assert set(found) == {"", "A"}
    assert (found["A"]["novel_images"], found["A"]["known_images"]) == (2, 3)
    assert (found[""]["novel_images"], found[""]["known_images"]) == (1, 4)
    # Known 5, 3, 4 against novel 1 and 4: of six pairs, five are right or even (4 = 4 counts a half).
    assert found["A"]["scores"]["energy"]["auroc"] == pytest.approx((3 + 1 + 0.5) / 6)
    # 95 % of three is all three, so the threshold is 3, which one of two novel images reaches.
    assert found["A"]["scores"]["energy"]["fpr95"] == 0.5
    assert found[""]["scores"]["similarity"] == {"auroc": pytest.approx((0.5 + 3) / 4), "fpr95": 1.0}


def test_the_runs_thresholds_are_judged_too() -> None:
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


def test_without_a_hierarchy_every_novel_image_asks_the_one_group() -> None:
    table = NoveltyTable.of(TREE, "flat", [])
    scores = np.array([[3.0], [2.0], [4.0], [1.0]], dtype=np.float32)
    known = KNOWN._replace(novelty={"energy": scores + 1, "probability": scores})
    novel = NOVEL._replace(novelty={"energy": scores, "probability": scores})
    found = novelty_report(known, KNOWN_LEAVES, novel, ANCESTOR, table, TREE, None)
    assert set(found["parents"]) == {""} and found["undecided"] == 0
    expected = roc_auc_score([1] * 4 + [0] * 4, [4, 3, 5, 2, 3, 2, 4, 1])
    assert found["parents"][""]["scores"]["energy"]["auroc"] == pytest.approx(expected)


def test_images_below_a_parent() -> None:
    assert images_below(TABLE, KNOWN_LEAVES, TREE).tolist() == [[True, True], [True, True], [True, True], [True, False]]


# ---- a run that leaves classes out -----------------------------------------------------------------------------------

CONFIG = {
    "name": "tiny",
    "batch": 16,
    "image": {"height": 32, "width": 32, "resize": "stretch"},
    "model": {"backbone": "resnet18", "weights": None, "stride": 8, "reduced": 16, "dimensions": 8, "inner_factor": 1},
    "data": {"hold_out": 0.25, "views": 1},
    "joint": {"epochs": 1},
    "last_layers": {"epochs": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "data"
    render_dataset(folder, per_leaf=4, size=64)
    return folder


@pytest.fixture(scope="module")
def left_out(data: Path) -> tuple[str, ...]:
    """Two leaves of different parents, each with siblings."""
    taxonomy = read_taxonomy(data)
    deep = [group for group in taxonomy.groups if set(group.children) <= set(taxonomy.leaves)]
    return tuple(taxonomy.names[group.children[0]] for group in (deep[0], deep[-1]))


@pytest.fixture(scope="module")
def run(data: Path, left_out: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config = parse_config({**CONFIG, "data": {**CONFIG["data"], "leave_out": left_out}}, "tiny")
    train(config, data, folder, linear=False, resume=False, device="cpu", console=Console(quiet=True))
    return folder


def test_left_out_leaves_are_in_no_split(data: Path, left_out: tuple[str, ...]) -> None:
    config = parse_config({"name": "a", "data": {"leave_out": left_out}}, "c")
    splits = read_splits(config, data)
    assert dict(splits.left_out) == {leaf: leaf for leaf in left_out}
    for dataset in (splits.fit, splits.selection, splits.validation, splits.test):
        assert dataset is not None
        assert not set(left_out) & set(dataset.taxonomy.names)
        assert not any(f"/{leaf}/" in image for image in dataset.images for leaf in left_out)
    whole = read_splits(parse_config({"name": "a"}, "c"), data)
    assert len(whole.fit.taxonomy.leaves) == len(splits.fit.taxonomy.leaves) + 2
    assert whole.fingerprint != splits.fingerprint


def test_an_unknown_leaf_to_leave_out_is_named(data: Path) -> None:
    config = parse_config({"name": "a", "data": {"leave_out": ["Creature/Beetle"]}}, "c")
    with pytest.raises(TaxonomyError, match="'Creature/Beetle' is not a leaf to leave out"):
        read_splits(config, data)


def test_the_run_records_what_it_left_out_and_its_thresholds(run: Path, left_out: tuple[str, ...]) -> None:
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["left_out"] == {leaf: leaf for leaf in left_out}
    metrics = json.loads((run / "metrics.json").read_text())
    novelty, calibration = metrics["novelty"], metrics["calibration"]
    assert novelty["score"] == "support" and novelty["true_positive_rate"] == 0.95
    assert set(novelty["thresholds"]) == set(calibration["temperature"])
    # On the images that they come from, thresholds let through what they state; then it is for the others to say.
    assert novelty["selection"]["known_at_parents"] >= 0.95
    assert 0.0 <= novelty["test"]["known_throughout"] <= novelty["test"]["known_at_parents"] <= 1.0


def test_calibration_is_in_the_run(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    calibration = metrics["calibration"]
    before, after = (
        calibration["selection"][moment]["negative_log_likelihood"]["leaf"] for moment in ("before", "after")
    )
    assert after <= before
    for moment in ("negative_log_likelihood", "expected_calibration_error"):
        assert metrics["test"][moment] == pytest.approx(calibration["test"]["after"][moment])
    for picture in ("calibration.png", "confusion.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    confusion = json.loads((run / "confusion.json").read_text())["test"]
    assert sum(map(sum, confusion[""])) == metrics["test"]["images"]
    stages = (run / "history.csv").read_text()
    assert stages.index("calibrate") < stages.index("novelty")


def test_evaluate_reports_on_the_left_out_leaves(run: Path, data: Path, left_out: tuple[str, ...]) -> None:
    command = ["evaluate", str(run), "--data", str(data), "--split", "test", "--novel", str(data), "--device", "cpu"]
    ended = CliRunner().invoke(build_app(), [*command, "--json"], catch_exceptions=False)
    document = json.loads(ended.stdout)
    novel = document.pop("novel")
    document.pop("seconds")
    assert document == json.loads((run / "metrics.json").read_text())["test"]
    test = read_split(data, "test", read_taxonomy(data))
    images = sum(image.startswith(f"test/{leaf}/") for image in test.images for leaf in left_out)
    assert novel["images"] == images and novel["passed_over"] == len(test) - images
    # Of two siblings one is left, which is certain: of its parent nothing can be asked.
    parents = {leaf.rpartition("/")[0] for leaf in left_out}
    taxonomy = read_taxonomy(data).without(left_out)
    asked = {parent for parent in parents if len(taxonomy.children_of(taxonomy.index[parent])) > 1}
    assert set(novel["parents"]) == asked and 0 < len(asked) < len(parents)
    assert novel["undecided"] == images // 2
    for found in novel["parents"].values():
        assert set(found["scores"]) == set(SCORES)
        assert all(0.0 <= one["auroc"] <= 1.0 for one in found["scores"].values())
    readable = CliRunner().invoke(build_app(), command, catch_exceptions=False).stdout
    for expected in (
        "calibration error",
        "hierarchical precision",
        "novel images: AUROC",
        "under the right node of level 1",
    ):
        assert expected in readable


def test_evaluate_needs_something_novel(run: Path, data: Path, tmp_path: Path) -> None:
    from training.outcome.evaluating import evaluate

    shutil.copytree(data / "test" / "Vehicle", tmp_path / "Vehicle")
    taxonomy = read_taxonomy(data)
    for leaf in json.loads((run / "provenance.json").read_text())["left_out"]:
        if leaf.startswith("Vehicle"):
            shutil.rmtree(tmp_path / leaf)
    assert taxonomy.depth == 3
    with pytest.raises(InputError, match="no image of a class that the taxonomy lacks"):
        evaluate(run, data, "test", novel=tmp_path, device="cpu", console=Console(quiet=True))

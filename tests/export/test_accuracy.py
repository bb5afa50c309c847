"""The limits of less precision, on answers written by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.accuracy import evidence_kept, first_evidence, in_batches, judge, judging_data
from export.parity import INT8
from protoserve.data.folders import taxonomy_of_folders
from protoserve.errors import InputError, ParityError
from protoserve.run.folder import open_run
from protoserve.taxonomy import Taxonomy

# Nodes: Fruit, Milk, Apple, Pear; leaves: Milk, Apple, Pear.
TREE = Taxonomy.from_paths(["Fruit/Apple", "Fruit/Pear", "Milk"])
PROBABILITIES = {0: [0.1, 0.9, 0.06, 0.04], 1: [0.9, 0.1, 0.7, 0.2], 2: [0.9, 0.1, 0.2, 0.7]}
PATHS = {0: [1, -1], 1: [0, 2], 2: [0, 3]}


def answer(
    leaves: NDArray[np.int64], evidence: dict[tuple[int, int], list[int]] | None = None
) -> dict[str, NDArray[Any]]:
    """Answers whose most probable leaf is each of `leaves`; the first evidence is that leaf's own prototypes."""
    prototypes = np.array([[[10 * leaf, 10 * leaf + 1], [10 * leaf + 2, 10 * leaf + 3]] for leaf in leaves])
    prototypes[np.array(leaves) == 0, 1] = -1
    for place, prototype in (evidence or {}).items():
        prototypes[place] = prototype
    return {
        "log_probability": np.log(np.array([PROBABILITIES[leaf] for leaf in leaves])),
        "path": np.array([PATHS[leaf] for leaf in leaves]),
        "evidence_prototype": prototypes,
        "evidence_contribution": np.where(prototypes < 0, 0.0, np.array([2.0, 1.0])),
    }


def test_the_same_answers_lose_nothing() -> None:
    leaves = np.array([0, 1, 2, 0])
    report = judge(answer(leaves), answer(leaves), leaves, TREE, INT8)
    assert report.accuracy.network["leaf"] == 1.0
    assert set(report.loss_points.values()) == {0.0}
    assert report.first_evidence_same == {"level_1": 1.0, "level_2": 1.0}


def test_a_lost_point_is_named_with_its_level() -> None:
    leaves = np.array([1, 2] * 49 + [0, 0])
    found = np.array(leaves)
    found[:2] = [2, 1]  # two of a hundred leaves, and no fruit becomes milk
    with pytest.raises(ParityError, match=r"leaf loses 2\.00 points of accuracy \(at most 1\)") as raised:
        judge(answer(leaves), answer(found), leaves, TREE, INT8)
    assert "level_1" not in str(raised.value)


def test_another_first_prototype_counts_unless_the_network_can_not_tell_them_apart() -> None:
    leaves = np.array([1, 2])
    other = answer(leaves, {(0, 0): [11, 10]})
    there, same = first_evidence(answer(leaves), other)
    assert there.all()
    assert same.tolist() == [[False, True], [True, True]]
    tied = answer(leaves)
    tied["evidence_contribution"][0, 0] = [2.0, 2.0 - 1e-3]
    assert first_evidence(tied, other)[1].all()


def test_too_much_other_evidence_at_one_level_is_refused() -> None:
    leaves = np.array([1] * 99 + [2])
    changed = {(place, 0): [5, 6] for place in range(6)}  # 6 of 100 at level 1, none below
    message = r"level_1 has the same first evidence in 94\.0 % of pictures \(at least 95 %\); no bundle"
    with pytest.raises(ParityError, match=message):
        judge(answer(leaves), answer(leaves, changed), leaves, TREE, INT8)


def test_a_level_without_evidence_is_not_counted() -> None:
    there, same = first_evidence(answer(np.array([0])), answer(np.array([0])))
    assert there.tolist() == same.tolist() == [[True, False]]
    assert evidence_kept(there, same) == {"level_1": 1.0}


def test_batches_that_must_be_whole_start_over() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.uint8)
    assert [batch[:, 0, 0, 0].tolist() for batch in in_batches(pictures, 3)] == [[0, 1, 2], [3, 4]]
    assert [batch[:, 0, 0, 0].tolist() for batch in in_batches(pictures, 3, whole=True)] == [[0, 1, 2], [3, 4, 0]]


def test_calibration_pictures_were_learned_from_and_validation_pictures_not(learned: tuple[Path, Path]) -> None:
    run, data = learned
    taxonomy = taxonomy_of_folders(data / "train")
    held = judging_data(open_run(run), data, taxonomy)
    assert all(image.startswith("train/") for image in held.calibration.images)
    assert all(image.startswith("val/") for image in held.validation.images)


def test_without_val_the_run_s_own_hold_out_is_validated_on(learned: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(learned[0], run)
    shutil.copytree(learned[1], data)
    shutil.rmtree(data / "val")
    with pytest.raises(InputError, match="held out no images"):
        judging_data(open_run(run), data, taxonomy_of_folders(data / "train"))
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["config"]["data"]["hold_out"] = 0.3
    (run / "provenance.json").write_text(json.dumps(provenance))
    held = judging_data(open_run(run), data, taxonomy_of_folders(data / "train"))
    assert len(held.validation)
    assert not set(held.validation.images) & set(held.calibration.images)


def test_another_data_set_is_refused(learned: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = learned
    shutil.copytree(data, tmp_path / "data")
    next((tmp_path / "data" / "train").rglob("*.png")).unlink()
    with pytest.raises(InputError, match="this is not the data set"):
        judging_data(open_run(run), tmp_path / "data", taxonomy_of_folders(data / "train"))

"""The calibration pictures of the promise: their walks under restrictions, and the arrays on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.errors import BundleError
from protoserve.novelty import NoveltyTable
from protoserve.promise import calibration as module
from protoserve.promise.calibration import Calibration, kept_sample, read_calibration, write_calibration
from protoserve.restriction import restriction_of, unrestricted
from protoserve.taxonomy import Taxonomy

TREE = Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Garlic"])
GROUP_OF = NoveltyTable.of(TREE, "hierarchical", ()).group_of("hierarchical")
# The leaves in the taxonomy's order: Garlic, Lemon, Gala, Fuji.
CALIBRATION = Calibration(
    leaf=np.array([2, 2, 0, 1], dtype=np.int32),
    log_probability=np.log(
        np.array([[0.1, 0.1, 0.5, 0.3], [0.1, 0.1, 0.3, 0.5], [0.2, 0.5, 0.2, 0.1], [0.1, 0.7, 0.1, 0.1]])
    ).astype(np.float32),
    fits=np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=np.bool_),
)


def test_walks_follow_the_most_probable_leaf() -> None:
    walks = CALIBRATION.walks(unrestricted(TREE), GROUP_OF)
    expected = [[0.9, 0.8, 0.5], [0.9, 0.8, 0.5], [0.8, 0.5, 0.0], [0.9, 0.7, 0.0]]
    assert walks.probability == pytest.approx(np.array(expected), abs=1e-6)
    # Gala is right throughout; Fuji for Gala is right down to Apple; Lemon for Garlic is wrong from the start.
    assert walks.right.tolist() == [3, 2, 0, 2]
    assert walks.known.tolist() == [3, 2, 1, 0]


def test_restricted_walks_hold_only_pictures_on_the_list() -> None:
    walks = CALIBRATION.walks(restriction_of(TREE, deny=["Fruit/Lemon"]), GROUP_OF)
    # Without Lemon, 0.2 + 0.1 of 0.5 speaks for Fruit in the picture of Garlic, but the best leaf is a tie that
    # Garlic, the first, wins.
    assert walks.probability == pytest.approx(
        np.array([[0.8 / 0.9, 0.8 / 0.9, 0.5 / 0.9], [0.8 / 0.9, 0.8 / 0.9, 0.5 / 0.9], [0.4, 0.0, 0.0]]), abs=1e-6
    )
    assert walks.right.tolist() == [3, 2, 1]


def test_a_depth_makes_the_cut_node_the_truth() -> None:
    walks = CALIBRATION.walks(restriction_of(TREE, depth={"Fruit/Apple": 2}), GROUP_OF)
    assert walks.right.tolist() == [2, 2, 0, 2]


def test_arrays_come_back_as_written(tmp_path: Path) -> None:
    write_calibration(CALIBRATION, tmp_path / "calibration")
    found = read_calibration(tmp_path / "calibration", leaves=4, groups=3)
    for name in ("leaf", "log_probability", "fits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(CALIBRATION, name))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("leaf", np.zeros(3, dtype=np.int32), "don't fit a model of 4 leaves"),
        ("leaf", np.full(4, 9, dtype=np.int32), "names a leaf that the model does not have"),
        ("leaf", np.zeros(4), "holds float64, not int32"),
        ("log_probability", np.full((4, 4), np.nan, dtype=np.float32), "not logarithms"),
        ("fits", np.zeros((4, 2), dtype=np.bool_), "don't fit"),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, name: str, array: NDArray[Any], message: str) -> None:
    write_calibration(CALIBRATION, tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(BundleError, match=message):
        read_calibration(tmp_path, leaves=4, groups=3)


def test_a_missing_or_pickled_file_is_refused(tmp_path: Path) -> None:
    write_calibration(CALIBRATION, tmp_path)
    np.save(tmp_path / "leaf.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BundleError, match=r"leaf\.npy: not an array"):
        read_calibration(tmp_path, leaves=4, groups=3)
    (tmp_path / "leaf.npy").unlink()
    with pytest.raises(BundleError, match=r"leaf\.npy: not an array"):
        read_calibration(tmp_path, leaves=4, groups=3)


def test_a_large_calibration_keeps_a_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_sample(CALIBRATION) is CALIBRATION
    monkeypatch.setattr(module, "_MOST", 8)
    kept = kept_sample(CALIBRATION)
    assert len(kept) == 2 and set(kept.leaf.tolist()) <= {0, 1, 2}

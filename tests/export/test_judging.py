"""The limits of less precision, on answers written by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.judging import agreement, evidence_kept, first_evidence, judge, saved_as_jpeg, shares
from export.parity import INT8
from export.records import Agreement
from protoserve.errors import ParityError
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
    for figure in (report.same_node, report.first_evidence_same, report.evidence_kept):
        assert figure == {"level_1": 1.0, "level_2": 1.0}


def test_a_lost_point_is_named_with_its_level() -> None:
    leaves = np.array([1, 2] * 49 + [0, 0])
    found = np.array(leaves)
    found[:2] = [2, 1]  # two of a hundred leaves, and no fruit becomes milk
    with pytest.raises(ParityError, match=r"leaf loses 2\.00 points of accuracy \(at most 1\)") as raised:
        judge(answer(leaves), answer(found), leaves, TREE, INT8)
    assert "level_1" not in str(raised.value)


def test_another_first_prototype_is_the_same_only_if_the_network_can_not_tell_them_apart() -> None:
    leaves = np.array([1, 2])
    other = answer(leaves, {(0, 0): [11, 10]})
    present, same = first_evidence(answer(leaves), other)
    assert present.all()
    assert same.tolist() == [[False, True], [True, True]]
    tied = answer(leaves)
    tied["evidence_contribution"][0, 0] = [2.0, 2.0 - 1e-3]
    assert first_evidence(tied, other)[1].all()


@pytest.mark.parametrize(("second", "kept"), [(1.81, True), (1.79, False)])
def test_another_first_prototype_is_as_good_from_nine_tenths_of_the_contribution(second: float, kept: bool) -> None:
    expected = answer(np.array([1]))
    expected["evidence_contribution"][0, 0] = [2.0, second]
    target = answer(np.array([1]), {(0, 0): [11, 10]})
    assert first_evidence(expected, target)[1].tolist() == [[False, True]]
    assert evidence_kept(expected, target)[1].tolist() == [[kept, True]]


def test_evidence_for_another_node_is_not_compared() -> None:
    comparable, kept = evidence_kept(answer(np.array([1, 2])), answer(np.array([1, 1])))
    assert comparable.tolist() == [[True, True], [True, False]]
    assert kept.tolist() == [[True, True], [False, False]]


def test_too_little_evidence_at_one_level_is_refused() -> None:
    leaves = np.array([1] * 99 + [2])
    changed = {(place, 0): [5, 6] for place in range(6)}  # 6 of 100 at level 1, none below
    message = r"at level_1 the first evidence contributes .* in 94\.0 % of pictures \(at least 95 %\); no bundle"
    with pytest.raises(ParityError, match=message):
        judge(answer(leaves), answer(leaves, changed), leaves, TREE, INT8)


def test_nodes_may_change_as_often_as_the_network_changes_its_own_after_jpeg() -> None:
    leaves = np.array([1, 2] * 50)
    found = np.array(leaves)
    found[:6] = [2, 1] * 3
    # The classes of these pictures are right half the time before and after, so accuracy loses nothing.
    labels = np.array([1, 1, 1, 1, 1, 1, *leaves[6:]])
    # At level 1 the evidence stays.
    kept = {(place, 0): [10 * leaf, 10 * leaf + 1] for place, leaf in enumerate(leaves[:6].tolist())}
    expected, target = answer(leaves), answer(found, kept)
    with pytest.raises(ParityError, match=r"level_2 has the same node in 94\.0 % of pictures \(at least 95 %\)"):
        judge(expected, target, labels, TREE, INT8)
    own = agreement(expected, target, labels, TREE)
    report = judge(expected, target, labels, TREE, INT8, reencoded=own)
    assert report.reencoded == own
    assert report.same_node == {"level_1": 1.0, "level_2": 0.94}
    one_more = Agreement(**{**own.model_dump(), "same_node": {"level_1": 1.0, "level_2": 0.945}})
    with pytest.raises(
        ParityError, match=r"int8, as it stands, is too far .* 94\.0 % of pictures \(at least 94\.5 %\)"
    ):
        judge(expected, target, labels, TREE, INT8, one_more, ", as it stands,")


def test_a_level_without_evidence_is_not_counted() -> None:
    present, same = first_evidence(answer(np.array([0])), answer(np.array([0])))
    assert present.tolist() == same.tolist() == [[True, False]]
    assert shares(present, same) == {"level_1": 1.0}


def test_jpeg_changes_pictures_a_little() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 6, 8, 3), dtype=np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(picture).resize((64, 48))) for picture in noise])
    saved = saved_as_jpeg(smooth, 90)
    assert saved.shape == smooth.shape
    assert 0 < np.abs(saved.astype(np.int64) - smooth).mean() < 8

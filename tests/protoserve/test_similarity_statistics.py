"""Usual similarities and separation, worked by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.novelty import NoveltyTable
from protoserve.similarity_statistics import SimilaritySums
from protoserve.taxonomy import Kind, Taxonomy

# Fruit(0) Tool(1) | Fruit/Apple(2) Fruit/Lemon(3) Tool/Knife(4); leaves: Apple, Lemon, Knife
TREE = Taxonomy.from_paths(["Fruit/Apple", "Fruit/Lemon", "Tool/Knife"])


def sums_of(kind: Kind, prototype_child: list[int]) -> SimilaritySums:
    return SimilaritySums(TREE, NoveltyTable.of(TREE, kind, prototype_child))


def test_each_child_counts_the_same_however_many_pictures_it_has() -> None:
    # One prototype of Fruit at the root. Fruit's three pictures are similar by 1, 2 and 3, Tool's only one by 6.
    sums = sums_of("hierarchical", [0])
    sums.add(np.array([[1.0], [2.0], [3.0], [6.0]]), np.array([0, 0, 1, 2]))
    found = sums.statistics()
    assert (found.own[0], found.siblings[0], found.usual[0]) == pytest.approx((2.0, 6.0, 4.0))
    # The variances are 2/3 and 0, so the pooled deviation is √(1/3), and the effect is negative.
    assert found.deviation[0] == pytest.approx((1 / 3) ** 0.5)
    assert found.effect[0] == pytest.approx(-4 / (1 / 3) ** 0.5) and found.always_on[0]


def test_only_pictures_below_the_parent_count() -> None:
    sums = sums_of("hierarchical", [2])  # a prototype of Apple, which competes with Lemon
    sums.add(np.array([[5.0], [1.0], [1000.0]]), np.array([0, 1, 2]))
    found = sums.statistics()
    assert (found.own[0], found.siblings[0], found.usual[0]) == pytest.approx((5.0, 1.0, 3.0))


def test_perfect_separation_is_a_large_effect_and_none_is_always_on() -> None:
    sums = sums_of("hierarchical", [2, 2])
    sums.add(np.array([[5.0, 7.0], [1.0, 7.0]]), np.array([0, 1]))
    found = sums.statistics()
    assert found.effect[0] > 1e6 and not found.always_on[0]
    assert found.effect[1] == 0.0 and found.always_on[1]


def test_a_child_without_pictures_is_left_out_and_no_siblings_separate_nothing() -> None:
    sums = sums_of("flat", [2, 3, 4])
    sums.add(np.array([[5.0, 2.0, 1.0]]), np.array([0]))
    found = sums.statistics()
    assert found.usual.tolist() == [5.0, 2.0, 1.0]
    assert np.isnan(found.siblings[0]) and np.isnan(found.own[1])
    assert found.effect.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_batches_and_order_change_nothing(kind: Kind) -> None:
    generator = np.random.default_rng(0)
    children = [0, 0, 1, 2, 3, 3] if kind == "hierarchical" else [2, 2, 3, 4]
    similarity = generator.normal(size=(40, len(children)))
    leaves = generator.integers(0, 3, 40)
    whole, pieces = sums_of(kind, children), sums_of(kind, children)
    whole.add(similarity, leaves)
    for chosen in np.array_split(generator.permutation(40), 7):
        pieces.add(similarity[chosen], leaves[chosen])
    expected, found = whole.statistics(), pieces.statistics()
    for name in ("usual", "own", "siblings", "deviation"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-12)
    # By brute force, for the first prototype.
    group = {"hierarchical": [[0, 1], [2]], "flat": [[0], [1], [2]]}[kind]
    means = [similarity[np.isin(leaves, below), 0].mean() for below in group]
    assert found.usual[0] == pytest.approx(np.mean(means))


def test_records_hold_one_prototype_and_the_counts_of_all() -> None:
    sums = sums_of("hierarchical", [2, 2])
    sums.add(np.array([[5.0, 7.0], [1.0, 7.0]]), np.array([0, 1]))
    found = sums.statistics()
    one = found.of_prototype(1)
    assert one is not None and (one.own, one.siblings, one.effect, one.always_on) == (7.0, 7.0, 0.0, True)
    record = found.record()
    assert (record.telling, record.always_on, record.prototypes) == (1, 1, 2)


def test_a_prototype_without_pictures_of_its_class_has_no_record() -> None:
    sums = sums_of("flat", [2, 3])
    sums.add(np.array([[5.0, 2.0]]), np.array([0]))
    assert sums.statistics().of_prototype(1) is None


def test_a_picture_of_an_inner_node_counts_down_to_there() -> None:
    # Prototypes of Fruit and of Apple. The third picture is of some fruit (label 3, after three leaves).
    sums = sums_of("hierarchical", [0, 2])
    sums.add(np.array([[1.0, 5.0], [2.0, 1.0], [6.0, 900.0], [4.0, 0.0]]), np.array([0, 1, 3, 2]))
    found = sums.statistics()
    assert (found.own[0], found.siblings[0]) == pytest.approx((3.0, 4.0))
    assert (found.own[1], found.siblings[1]) == pytest.approx((5.0, 1.0))


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_each_sibling_is_told_apart_by_its_own_pictures(kind: Kind) -> None:
    generator = np.random.default_rng(1)
    children = [0, 1, 2, 3] if kind == "hierarchical" else [2, 3, 4]
    similarity, leaves = generator.normal(size=(40, len(children))), generator.integers(0, 3, 40)
    sums = sums_of(kind, children)
    sums.add(similarity, leaves)
    below = {0: leaves < 2, 1: leaves == 2, 2: leaves == 0, 3: leaves == 1, 4: leaves == 2}
    column = 0
    for members, effects in sums.against_members():
        for place in range(effects.shape[1]):
            own = similarity[below[children[column]], column]
            for row, member in enumerate(members):
                other = similarity[below[member], column]
                expected = (own.mean() - other.mean()) / np.sqrt((own.var() + other.var()) / 2)
                if member == children[column]:
                    assert np.isnan(effects[row, place])
                else:
                    assert effects[row, place] == pytest.approx(expected)
            column += 1
    assert column == len(children)

"""The class tree: its order, its tables, and the trees it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protoserve.errors import TaxonomyError
from protoserve.taxonomy import ROOT, Taxonomy


@pytest.fixture
def uneven() -> Taxonomy:
    return Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Tool/Knife", "Garlic"])


def test_nodes_are_numbered_breadth_first_and_siblings_are_consecutive(uneven: Taxonomy) -> None:
    assert uneven.names == (
        *("Fruit", "Tool", "Garlic"),
        *("Fruit/Apple", "Fruit/Lemon", "Tool/Knife"),
        *("Fruit/Apple/Gala", "Fruit/Apple/Fuji"),
    )
    assert list(uneven.children_of(ROOT)) == [0, 1, 2]
    assert list(uneven.children[3]) == [6, 7]


def test_leaves_may_stand_at_different_levels(uneven: Taxonomy) -> None:
    garlic = uneven.leaves.index(uneven.index["Garlic"])
    gala = uneven.leaves.index(uneven.index["Fruit/Apple/Gala"])
    assert uneven.level_of_leaf[garlic].tolist() == [uneven.index["Garlic"]] * 3
    expected = [uneven.index[name] for name in ("Fruit", "Fruit/Apple", "Fruit/Apple/Gala")]
    assert uneven.level_of_leaf[gala].tolist() == expected
    assert uneven.path_at_level[uneven.index["Garlic"]].tolist() == [uneven.index["Garlic"], -1, -1]


def test_an_only_child_is_in_no_group(uneven: Taxonomy) -> None:
    assert [group.parent for group in uneven.groups] == [
        ROOT,
        uneven.index["Fruit"],
        uneven.index["Fruit/Apple"],
    ]


def test_leaves_below_counts_a_leaf_as_below_itself(uneven: Taxonomy) -> None:
    fruit = uneven.leaves_below[uneven.index["Fruit"]]
    assert [uneven.names[leaf] for leaf in np.array(uneven.leaves)[fruit]] == [
        "Fruit/Lemon",
        "Fruit/Apple/Gala",
        "Fruit/Apple/Fuji",
    ]
    assert uneven.leaves_below[uneven.index["Garlic"]].sum() == 1


def test_names_may_repeat_in_different_branches() -> None:
    tree = Taxonomy.from_paths(["Juice/Apple", "Juice/Other", "Fruit/Apple", "Fruit/Other"])
    assert tree.index["Juice/Apple"] != tree.index["Fruit/Apple"]


def test_dictionary_round_trip_keeps_the_order(uneven: Taxonomy) -> None:
    assert Taxonomy.from_dict(uneven.to_dict()) == uneven


@pytest.mark.parametrize(
    "content",
    [{}, {"nodes": [["A"], ["B"]]}, {"nodes": [["A", "x"], ["B"]], "folders": ["A/x", "B"]}],
    ids=["empty", "no folders", "a child without its parent"],
)
def test_a_damaged_dictionary_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(TaxonomyError, match="not a stored taxonomy"):
        Taxonomy.from_dict(content)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "empty"),
        (["A"], "nothing to tell apart"),
        (["A", "A"], "duplicate siblings: 'A'"),
        (["A", "A/B", "C"], "'A' is a leaf and also the parent"),
        (["A/", "B"], "not a class name"),
        (["A/../B", "C"], "not a class name"),
    ],
)
def test_paths_that_are_not_a_tree_are_refused(paths: list[str], message: str) -> None:
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_paths(paths)


def test_leaves_may_be_left_out() -> None:
    tree = Taxonomy.from_paths(
        ["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Root/Beet", "Garlic"], ["g", "f", "l", "b", "k"]
    )
    smaller = tree.without(["Fruit/Apple/Fuji", "Root/Beet"])
    assert set(smaller.names) == {"Fruit", "Garlic", "Fruit/Apple", "Fruit/Lemon", "Fruit/Apple/Gala"}
    assert dict(zip([smaller.names[leaf] for leaf in smaller.leaves], smaller.folders, strict=True)) == {
        "Fruit/Apple/Gala": "g",
        "Fruit/Lemon": "l",
        "Garlic": "k",
    }
    # Siblings keep their order, and Gala is now certain where Apple is.
    kept = [name for name in tree.names if name in smaller.index]
    assert list(smaller.names) == kept
    assert [smaller.names[group.children[0]] for group in smaller.groups] == ["Fruit", "Fruit/Apple"]
    assert Taxonomy.from_dict(smaller.to_dict()) == smaller


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (["Fruit/Aple"], r"no leaf 'Fruit/Aple' to leave out; did you mean 'Fruit/Apple'"),
        (["Fruit"], r"'Fruit' is not a leaf to leave out; name the leaves below it: Fruit/Apple, Fruit/Lemon"),
        (["Fruit/Apple", "Garlic"], "keeps only 1; leave out fewer"),
    ],
)
def test_unknown_leaves_parents_and_too_many_leaves_can_not_be_left_out(leaves: list[str], message: str) -> None:
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_paths(["Fruit/Apple", "Fruit/Lemon", "Garlic"]).without(leaves)


def test_labels_are_the_leaves_and_then_the_inner_nodes() -> None:
    tree = Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Garlic"])
    names = [tree.names[node] for node in tree.label_nodes]
    assert names[:4] == [tree.names[leaf] for leaf in tree.leaves] and names[4:] == ["Fruit", "Fruit/Apple"]
    np.testing.assert_array_equal(tree.labels_below[:, :4], tree.leaves_below)
    # A picture of an apple is a fruit and an apple, and nobody knows which one.
    assert [tree.names[node] for node in np.flatnonzero(tree.labels_below[:, 5])] == ["Fruit", "Fruit/Apple"]
    assert [names[leaf] for leaf in np.flatnonzero(tree.leaves_of_label[5])] == ["Fruit/Apple/Gala", "Fruit/Apple/Fuji"]
    assert tree.leaves_of_label[:4].tolist() == np.eye(4, dtype=bool).tolist()

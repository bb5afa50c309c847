"""The changes of a class tree: worked examples, and a cure for everything that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.errors import InputError, TaxonomyError
from protoserve.taxonomy import Taxonomy
from training.extending.changes import Changes, changed_tree, read_changes

TREE = Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Fruit/Lime", "Garlic"])


def leaves(taxonomy: Taxonomy) -> list[str]:
    return [taxonomy.names[leaf] for leaf in taxonomy.leaves]


def test_every_change_at_once_gives_the_tree_that_one_would_draw() -> None:
    changes = read_changes(
        ["Fruit/Kiwi/Gold=a", "Fruit/Kiwi/Green=b"], ["Fruit/Apple/Fuji"], ["Garlic=Onion"], ["Fruit/Citrus=Lemon,Lime"]
    )
    tree = changed_tree(TREE, changes)
    assert leaves(tree.taxonomy) == ["Onion", "Fruit/Citrus", "Fruit/Apple/Gala", "Fruit/Kiwi/Gold", "Fruit/Kiwi/Green"]
    names = {TREE.names[old]: tree.taxonomy.names[new] for old, new in tree.node_of.items()}
    assert names == {
        "Fruit": "Fruit",
        "Garlic": "Onion",
        "Fruit/Apple": "Fruit/Apple",
        "Fruit/Lemon": "Fruit/Citrus",
        "Fruit/Lime": "Fruit/Citrus",
        "Fruit/Apple/Gala": "Fruit/Apple/Gala",
    }
    moved = [leaves(tree.taxonomy)[leaf] if leaf >= 0 else None for leaf in tree.leaf_of]
    expected = {"Garlic": "Onion", "Fruit/Lemon": "Fruit/Citrus", "Fruit/Lime": "Fruit/Citrus"}
    assert moved == [None if "Fuji" in leaf else expected.get(leaf, leaf) for leaf in leaves(TREE)]


def test_pictures_of_a_renamed_class_stay_in_their_folder() -> None:
    tree = changed_tree(TREE, read_changes([], [], ["Fruit/Apple=Fruit/Pome"], []))
    folders = dict(zip(leaves(tree.taxonomy), tree.taxonomy.folders, strict=True))
    assert folders["Fruit/Pome/Gala"] == "Fruit/Apple/Gala"


def test_a_parent_that_loses_all_its_classes_goes_with_them() -> None:
    tree = changed_tree(TREE, read_changes([], ["Fruit/Apple"], [], []))
    assert leaves(tree.taxonomy) == ["Garlic", "Fruit/Lemon", "Fruit/Lime"]


def test_two_classes_may_swap_their_names() -> None:
    tree = changed_tree(TREE, read_changes([], [], ["Fruit/Lemon=Lime", "Fruit/Lime=Lemon"], []))
    assert leaves(tree.taxonomy)[1:3] == ["Fruit/Lime", "Fruit/Lemon"]


def test_only_renaming_changes_nothing_but_names() -> None:
    assert read_changes([], [], ["Garlic=Onion"], []).only_names
    assert not read_changes(["Kiwi=a"], [], ["Garlic=Onion"], []).only_names


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((["Kiwi"], [], [], []), "Kiwi: write NODE=FOLDER, for example"),
        ((["Kiwi=a", "Kiwi=b"], [], [], []), "'Kiwi' is given twice; put its pictures into one folder"),
        (([], [], ["Garlic"], []), "--rename Garlic: write OLD=NEW"),
        (([], [], ["Garlic=A", "Garlic=B"], []), "'Garlic' is renamed twice"),
        (([], [], [], ["Citrus=Lemon"]), "names 1 class; name two siblings or more, or use --rename"),
        (([], ["Garlic"], ["Garlic=Onion"], []), "'Garlic' is changed in two ways"),
        (([], [], [], []), "nothing to change; give NODE=FOLDER"),
    ],
)
def test_what_is_not_a_change_is_refused(given: tuple[list[str], ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_changes(*given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (Changes(removed=("Fruit/Lemn",)), "no class 'Fruit/Lemn'; did you mean 'Fruit/Lemon'"),
        (Changes(added={"Fruit/Lemon": Path("a")}), "'Fruit/Lemon' is a class already; add its pictures to the data"),
        (Changes(added={"Fruit/Lemon/Meyer": Path("a")}), "'Fruit/Lemon' is a leaf and also the parent of others"),
        (Changes(renamed={"Fruit/Lemon": "Fruit/Lime"}), "'Fruit/Lime' is a class already; merge them with --merge"),
        (Changes(renamed={"Fruit/Lemon": "Lemon"}), "have other parents; a class keeps its parent"),
        (Changes(merged={"Fruit/X": ("Fruit/Apple", "Fruit/Lime")}), "a leaf and a class with classes below it"),
        (Changes(removed=("Fruit",)), "one leaf, 'Garlic': nothing to tell apart"),
        (Changes(renamed={"Garlic": "a\nb"}), "is not a class name"),
    ],
)
def test_a_change_that_does_not_fit_the_tree_is_refused(changes: Changes, said: str) -> None:
    with pytest.raises(TaxonomyError, match=said):
        changed_tree(TREE, changes)

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protoserve.errors import InputError, TaxonomyError
from protoserve.taxonomy import ROOT, Taxonomy


def touch(folder, *names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


@pytest.fixture
def uneven():
    return Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Lemon", "Tool/Knife", "Garlic"])


def test_nodes_are_numbered_breadth_first_and_siblings_are_consecutive(uneven) -> None:
    assert uneven.names == (
        *("Fruit", "Tool", "Garlic"),
        *("Fruit/Apple", "Fruit/Lemon", "Tool/Knife"),
        *("Fruit/Apple/Gala", "Fruit/Apple/Fuji"),
    )
    assert list(uneven.children_of(ROOT)) == [0, 1, 2]
    assert list(uneven.children[3]) == [6, 7]


def test_leaves_may_stand_at_different_levels(uneven) -> None:
    garlic = uneven.leaves.index(uneven.index["Garlic"])
    gala = uneven.leaves.index(uneven.index["Fruit/Apple/Gala"])
    assert uneven.level_of_leaf[garlic].tolist() == [uneven.index["Garlic"]] * 3
    expected = [uneven.index[name] for name in ("Fruit", "Fruit/Apple", "Fruit/Apple/Gala")]
    assert uneven.level_of_leaf[gala].tolist() == expected
    assert uneven.path_at_level[uneven.index["Garlic"]].tolist() == [uneven.index["Garlic"], -1, -1]


def test_an_only_child_is_in_no_group(uneven) -> None:
    assert [group.parent for group in uneven.groups] == [
        ROOT,
        uneven.index["Fruit"],
        uneven.index["Fruit/Apple"],
    ]


def test_leaves_below_counts_a_leaf_as_below_itself(uneven) -> None:
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


def test_dictionary_round_trip_keeps_the_order(uneven) -> None:
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
        (["A/", "B"], "no class name"),
        (["A/../B", "C"], "no class name"),
    ],
)
def test_what_is_no_tree_is_refused(paths, message: str) -> None:
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_paths(paths)


def test_pairs_make_the_same_tree_as_paths() -> None:
    pairs = [("Apple", "Fruit"), ("Lemon", "Fruit"), ("Gala", "Apple"), ("Fuji", "Apple"), ("Knife", "Tool")]
    tree = Taxonomy.from_pairs(pairs)
    assert set(tree.names) == {
        *("Fruit", "Tool", "Fruit/Apple", "Fruit/Lemon"),
        *("Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Tool/Knife"),
    }


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("A", "B"), ("B", "C"), ("C", "A")], "cycle in the taxonomy: .*A → "),
        ([("A", "A"), ("B", "A")], "cycle"),
        ([("A", "B"), ("A", "C")], "'A' has two parents, 'B' and 'C'"),
    ],
)
def test_pairs_with_cycles_or_two_parents_are_refused(pairs: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_pairs(pairs)


def test_folders_are_the_tree(tmp_path: Path) -> None:
    touch(tmp_path / "Fruit" / "Apple" / "Gala", "1.jpg")
    touch(tmp_path / "Fruit" / "Apple" / "Fuji", "1.PNG")
    touch(tmp_path / "Garlic", "1.webp", "notes.txt")
    touch(tmp_path / ".cache", "1.jpg")
    assert set(Taxonomy.from_folders(tmp_path).names) == {
        *("Fruit", "Garlic", "Fruit/Apple", "Fruit/Apple/Gala", "Fruit/Apple/Fuji"),
    }


def test_a_leaf_folder_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "Apple", "1.jpg")
    touch(tmp_path / "Lemon", "notes.txt")
    with pytest.raises(TaxonomyError, match=r"leaf 'Lemon' has no images under .*Lemon"):
        Taxonomy.from_folders(tmp_path)


def test_a_folder_with_images_and_folders_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "Fruit" / "Apple", "1.jpg")
    touch(tmp_path / "Fruit", "1.jpg")
    with pytest.raises(TaxonomyError, match="both images and the folder 'Apple'"):
        Taxonomy.from_folders(tmp_path)


def test_a_cycle_of_links_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "Fruit" / "Apple", "1.jpg")
    (tmp_path / "Fruit" / "again").symlink_to(tmp_path / "Fruit", target_is_directory=True)
    with pytest.raises(TaxonomyError, match=r"cycle .*links back"):
        Taxonomy.from_folders(tmp_path)


def test_no_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Taxonomy.from_folders(tmp_path / "nowhere")
    with pytest.raises(TaxonomyError, match="empty"):
        Taxonomy.from_folders(tmp_path)


def test_yaml_over_flat_folders(tmp_path: Path) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text("animal:\n  ape:\n    gibbon:\n    gorilla: western_gorilla\n  lion:\nscuba_diver:\n")
    tree = Taxonomy.from_yaml(file)
    assert dict(zip([tree.names[leaf] for leaf in tree.leaves], tree.folders, strict=True)) == {
        "scuba_diver": "scuba_diver",
        "animal/lion": "lion",
        "animal/ape/gibbon": "gibbon",
        "animal/ape/gorilla": "western_gorilla",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("- a\n- b\n", "empty"),
        ("a:\n  x:\n  x:\n", "line 3: the key 'x' is given twice"),
        ("a:\n  x:\nb:\n  x:\n", "share the folder 'x'"),
        ("a: 3\nb:\n", "'a' has the value 3"),
        ("a: [x, y]\nb:\n", "'a' has the value"),
        ("a: &loop\n  b: *loop\n  c:\n", "cycle"),
        ("a: {\n", "not valid YAML"),
    ],
)
def test_a_bad_yaml_taxonomy_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        Taxonomy.from_yaml(file)


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
        (["Fruit"], r"'Fruit' is no leaf to leave out; name the leaves below it: Fruit/Apple, Fruit/Lemon"),
        (["Fruit/Apple", "Garlic"], "1 are left; leave out fewer"),
    ],
)
def test_what_cannot_be_left_out(leaves: list[str], message: str) -> None:
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_paths(["Fruit/Apple", "Fruit/Lemon", "Garlic"]).without(leaves)

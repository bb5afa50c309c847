"""`taxonomy.yaml`: the tree it describes, and the errors that name a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.data.taxonomy_file import read_taxonomy_file
from protoserve.errors import InputError


def test_yaml_over_flat_folders(tmp_path: Path) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text("animal:\n  ape:\n    gibbon:\n    gorilla: western_gorilla\n  lion:\nscuba_diver:\n")
    tree = read_taxonomy_file(file)
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
        ("a: [x, y]\nb:\n", "'a' has the value"),
        ("a: &loop\n  b: *loop\n  c:\n", "cycle"),
        ("a: {\n", "not valid YAML"),
    ],
)
def test_a_bad_yaml_taxonomy_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_taxonomy_file(file)


@pytest.mark.parametrize(
    ("text", "line", "name", "read"),
    [
        ("Apple:\n001:\n", 2, "001", "1"),
        ("Apple:\n1.10:\n", 2, "1.10", "1.1"),
        ("Apple:\nFruit:\n  null:\n", 3, "null", "None"),
        ("true:\nApple:\n", 1, "true", "True"),
        ("1e3:\nApple:\n", 1, "1e3", "1000.0"),
        ("Apple:\nLemon: 007\n", 2, "007", "7"),
    ],
)
def test_a_name_that_yaml_changes_must_be_quoted(tmp_path: Path, text: str, line: int, name: str, read: str) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        read_taxonomy_file(file)
    assert str(raised.value) == f'{file}, line {line}: YAML reads the name {name} as {read}; quote it: "{name}"'


def test_words_and_numbers_that_yaml_keeps_are_names(tmp_path: Path) -> None:
    """`No` and `off` are words in YAML 1.2; quoted names are always text."""
    file = tmp_path / "taxonomy.yaml"
    file.write_text("No:\noff:\n7: 70\n'001':\n\"null\":\n")
    tree = read_taxonomy_file(file)
    assert tree.names == ("No", "off", "7", "001", "null") and tree.folders == ("No", "off", "70", "001", "null")


def test_names_are_in_composed_form_and_look_alikes_refused(tmp_path: Path) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text("Cre\u0300me: cre\u0300me\nGarlic:\n", encoding="utf-8")
    tree = read_taxonomy_file(file)
    assert tree.names == ("Cr\u00e8me", "Garlic") and tree.folders == ("cr\u00e8me", "Garlic")
    file.write_text("Apple: a\nFruit:\n  apple: b\n  Apple: c\n", encoding="utf-8")
    with pytest.raises(InputError, match="'Apple' looks like 'apple'"):
        read_taxonomy_file(file)

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
        read_taxonomy_file(file)

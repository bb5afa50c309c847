"""Broken headers, and pictures that are in a data set twice, found before anything long starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from protoserve.data.checking import broken_pictures, copies, refuse_broken, under_two_leaves, without_broken
from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.errors import InputError
from tests.protoserve.data.folder_pictures import add_pictures


def train(root: Path) -> Dataset:
    return read_split(root, "train", read_taxonomy(root))


def test_every_picture_that_cannot_be_read_is_found_with_its_reason(root: Path) -> None:
    (root / "train/Garlic/0.png").write_bytes(b"")
    (root / "train/Garlic/1.png").write_bytes(b"<html>")
    (root / "train/Fruit/Apple/0.png").write_bytes((root / "train/Fruit/Apple/1.png").read_bytes()[:20])
    (root / "train/Fruit/Lemon/0.png").unlink()
    (root / "train/Fruit/Lemon/0.png").symlink_to("nowhere.png")
    counted: list[int] = []
    found = broken_pictures(train(root), counted.append)
    assert sum(counted) == 30
    assert found == {
        "train/Fruit/Apple/0.png": "is damaged or truncated",
        "train/Fruit/Lemon/0.png": "no such file",
        "train/Garlic/0.png": "is empty",
        "train/Garlic/1.png": "is an HTML page, not a picture",
    }


def test_a_pipe_in_a_table_does_not_hang_the_check(tmp_path: Path) -> None:
    add_pictures(tmp_path, ".", 2)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "m.csv").write_text("image,path,split\n0.png,A,train\n1.png,B,train\n")
    taxonomy = read_taxonomy(tmp_path / "m.csv")
    dataset = Dataset(
        tmp_path, "train", taxonomy, ("0.png", "pipe.jpg"), read_split(tmp_path / "m.csv", "train", taxonomy).leaves
    )
    assert broken_pictures(dataset) == {"pipe.jpg": "is a pipe, a socket or a device"}


def test_a_long_list_is_cut_and_counted() -> None:
    refuse_broken({})
    with pytest.raises(InputError) as raised:
        refuse_broken({f"{number}.jpg": "empty" for number in range(25)})
    assert str(raised.value).startswith("25 pictures can't be read: 0.jpg (empty), 1.jpg (empty)")
    assert "19.jpg (empty) and 5 more; mend or remove them, or leave them out with --skip-broken" in str(raised.value)


def test_they_are_left_out_on_request(root: Path) -> None:
    (root / "train/Garlic/0.png").write_bytes(b"")
    dataset, names = without_broken(train(root), skip=True)
    assert len(dataset) == 29 and names == ("train/Garlic/0.png",) and dataset.passed_over == {"broken": 1}
    with pytest.raises(InputError, match=r"1 picture can't be read: train/Garlic/0\.png"):
        without_broken(train(root), skip=False)


def test_pictures_of_arrays_are_never_broken(tiny_idx: Path) -> None:
    assert broken_pictures(read_split(tiny_idx, "test", read_taxonomy(tiny_idx))) == {}


def test_copies_are_found_by_content(root: Path) -> None:
    add_pictures(root, "test/Garlic", 2)
    (root / "test/Garlic/0.png").write_bytes(b"another picture of its own")
    first, second = train(root), read_split(root, "test", read_taxonomy(root))
    # `add_pictures` draws the same pictures for every leaf.
    assert [image for image, _ in copies(first, second)] == ["test/Garlic/1.png"]
    assert dict(copies(first, second))["test/Garlic/1.png"].endswith("/1.png")
    shutil.copy(root / "train/Garlic/5.png", root / "train/Garlic/six.png")
    found = under_two_leaves(train(root).subset(range(20, 31)))
    assert found == [], "a copy in its own class is not in two"
    assert ("train/Garlic/0.png", "train/Fruit/Apple/0.png") in under_two_leaves(train(root))

"""Folders of pictures to label."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from protoserve.errors import InputError
from protoserve.feedback.labelling import Labelled, write_to_label
from tests.protoserve.feedback.records import record


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five files that look like pictures; only their bytes matter."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.JPG").write_bytes(bytes([number]))
    return folder


def digest(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


def test_pictures_go_to_the_folder_of_the_right_node(pictures: Path, tmp_path: Path) -> None:
    said = [
        record(0, image=digest(0), verdict="wrong", node="Fruit/Pear"),
        record(1, image=digest(1), verdict="wrong", node="Fruit"),
        record(2, image=digest(2), verdict="wrong"),
        # Two people, two opinions.
        record(3, image=digest(3), verdict="wrong", node="Fruit/Pear"),
        record(4, image=digest(3)),
        record(5, image=digest(4)),
        record(6, image="0" * 64, verdict="wrong", node="Tool"),
    ]
    target = tmp_path / "to-label"
    assert write_to_label(said, pictures, target) == Labelled(decided=2, undecided=2, present=0, missing=1)
    copied = {file.relative_to(target).as_posix(): file.read_bytes() for file in target.rglob("*") if file.is_file()}
    assert copied == {
        f"Fruit/Pear/{digest(0)}.jpg": bytes([0]),
        f"Fruit/{digest(1)}.jpg": bytes([1]),
        f"undecided/{digest(2)}.jpg": bytes([2]),
        f"undecided/{digest(3)}.jpg": bytes([3]),
    }
    # Somebody decides, and the command is repeated.
    (target / "undecided" / f"{digest(2)}.jpg").rename(target / "Fruit" / f"{digest(2)}.jpg")
    assert write_to_label(said, pictures, target) == Labelled(decided=0, undecided=0, present=4, missing=1)
    assert not (target / "undecided" / f"{digest(2)}.jpg").exists()


def test_no_node_leads_out_of_the_folder(pictures: Path, tmp_path: Path) -> None:
    said = [record(0, image=digest(0), verdict="wrong", node="../../outside")]
    with pytest.raises(InputError, match="names a place outside"):
        write_to_label(said, pictures, tmp_path / "to-label")
    assert not (tmp_path.parent / "outside").exists()


def test_what_is_missing_is_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to label"):
        write_to_label([record(0)], pictures, tmp_path / "to-label")
    with pytest.raises(InputError, match="no such folder"):
        write_to_label([record(0, verdict="wrong")], tmp_path / "nowhere", tmp_path / "to-label")

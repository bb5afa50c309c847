"""The tree that folders form, and the files in them that count as images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protoserve.data.folders import (
    find_pictures,
    split_folder,
    split_named,
    taxonomy_of_folders,
    told,
    without_only_parents,
)
from protoserve.errors import InputError, TaxonomyError
from protoserve.taxonomy import Taxonomy


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_pictures_are_sorted_and_hidden_ones_skipped(tmp_path: Path) -> None:
    touch(tmp_path / "b", "2.JPG", "1.webp", "notes.txt", ".3.png", "4.png.part")
    touch(tmp_path / ".cache", "1.jpg")
    touch(tmp_path / "a" / "deep", "1.tiff")
    touch(tmp_path, "z.gif")
    found = [file.relative_to(tmp_path).as_posix() for file in find_pictures(tmp_path).files]
    assert found == ["a/deep/1.tiff", "b/1.webp", "b/2.JPG", "z.gif"]


def test_folders_are_the_tree(tmp_path: Path) -> None:
    touch(tmp_path / "Fruit" / "Apple" / "Gala", "1.jpg")
    touch(tmp_path / "Fruit" / "Apple" / "Fuji", "1.PNG")
    touch(tmp_path / "Garlic", "1.webp", "notes.txt")
    touch(tmp_path / ".cache", "1.jpg")
    assert set(taxonomy_of_folders(tmp_path).names) == {
        *("Fruit", "Garlic", "Fruit/Apple", "Fruit/Apple/Gala", "Fruit/Apple/Fuji"),
    }


def test_a_leaf_folder_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "Apple", "1.jpg")
    touch(tmp_path / "Lemon", "notes.txt")
    with pytest.raises(TaxonomyError, match=r"leaf 'Lemon' has no images under .*Lemon"):
        taxonomy_of_folders(tmp_path)


def test_a_parent_may_have_images_of_its_own(tmp_path: Path) -> None:
    for folder in ("Fruit/Apple", "Fruit/Lemon", "Garlic", "Fruit"):
        touch(tmp_path / folder, "1.jpg")
    assert taxonomy_of_folders(tmp_path).names == ("Fruit", "Garlic", "Fruit/Apple", "Fruit/Lemon")
    touch(tmp_path, "1.jpg")
    with pytest.raises(TaxonomyError, match="holds images directly"):
        taxonomy_of_folders(tmp_path)


def test_a_cycle_of_links_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "Fruit" / "Apple", "1.jpg")
    (tmp_path / "Fruit" / "again").symlink_to(tmp_path / "Fruit", target_is_directory=True)
    with pytest.raises(TaxonomyError, match=r"cycle .*links back"):
        taxonomy_of_folders(tmp_path)


def test_a_missing_and_an_empty_folder_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        taxonomy_of_folders(tmp_path / "nowhere")
    with pytest.raises(TaxonomyError, match="empty"):
        taxonomy_of_folders(tmp_path)


def test_a_parent_with_one_child_is_dropped_from_a_path(tmp_path: Path) -> None:
    touch(tmp_path / "Food" / "Bulbs" / "Garlic", "1.jpg")
    touch(tmp_path / "Fruit" / "Apple", "1.jpg")
    touch(tmp_path / "Tools" / "Saw", "1.jpg")
    touch(tmp_path / "Tools" / "Axe", "1.jpg")
    taxonomy = Taxonomy.from_paths(["Fruit/Apple", "Fruit/Lemon", "Garlic"])
    for leaf, shorter in [
        ("Food/Bulbs/Garlic", "Garlic"),
        ("Fruit/Apple", "Fruit/Apple"),  # Fruit is a node of the taxonomy
        ("Tools/Saw", "Tools/Saw"),  # Tools has two children
        ("Garlic", "Garlic"),
    ]:
        assert without_only_parents(Path(leaf), tmp_path, taxonomy) == shorter


# ---- files that are passed over --------------------------------------------------------------------------------------


def test_files_that_are_no_pictures_are_counted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path / "a", "1.JPG", "2.jfif", "3.jpe", "notes.txt", "data.csv", ".hidden.png", ".DS_Store", "Thumbs.db")
    touch(tmp_path / "a", "desktop.ini", "._1.JPG")
    touch(tmp_path / ".cache", "1.jpg")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    found = find_pictures(tmp_path)
    assert [file.name for file in found.files] == ["1.JPG", "2.jfif", "3.jpe"]
    assert found.passed_over == {"other_suffix": 2, "hidden": 2, "not_a_file": 1}
    assert told(found.passed_over) == (
        "passed over 5 files: 2 without the suffix of a picture, 2 hidden, 1 that are pipes, sockets or devices"
    )
    assert told({}) == ""


def test_links_to_class_folders_and_pictures_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "Gala", "1.jpg", "2.jpg")
    touch(tmp_path / "train" / "Fuji", "1.jpg")
    (tmp_path / "train" / "Gala").symlink_to(tmp_path / "elsewhere" / "Gala", target_is_directory=True)
    (tmp_path / "train" / "Fuji" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "Gala" / "2.jpg")
    found = [file.relative_to(tmp_path).as_posix() for file in find_pictures(tmp_path / "train").files]
    assert found == ["train/Fuji/1.jpg", "train/Fuji/2.jpg", "train/Gala/1.jpg", "train/Gala/2.jpg"]
    assert set(taxonomy_of_folders(tmp_path / "train").names) == {"Fuji", "Gala"}


def test_a_loop_of_links_is_an_error_and_two_links_to_one_folder_are_not(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "b", "1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "b", target_is_directory=True)
    assert len(find_pictures(tmp_path).files) == 2
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a", target_is_directory=True)
    with pytest.raises(InputError, match=r"up: this link leads back to a folder above it .*; remove the link"):
        find_pictures(tmp_path)


def test_a_leaf_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path / "Apple", "1.jpg")
    touch(tmp_path / "Lemon", "1.raw", "2.raw")
    with pytest.raises(TaxonomyError, match=r"under .*Lemon \(passed over 2 files: 2 without the suffix"):
        taxonomy_of_folders(tmp_path)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_split_s_folder_may_have_another_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert split_folder(tmp_path, "val") == split_folder(tmp_path, name) == tmp_path / name
    assert split_named(name) == "val" and split_named("test") == "test"
    assert split_folder(tmp_path, "test") is None


def test_two_folders_of_one_split_are_named(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "validation").mkdir()
    with pytest.raises(InputError, match=r"val and .*validation are both folders of the split 'val'; keep one"):
        split_folder(tmp_path, "val")


def test_folders_are_classes_in_composed_form(tmp_path: Path) -> None:
    touch(tmp_path / "Cre\u0300me", "1.jpg")
    touch(tmp_path / "Garlic", "1.jpg")
    assert taxonomy_of_folders(tmp_path).names == ("Cr\u00e8me", "Garlic")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cr\u00e8me", "Cre\u0300me"), ("Apple", "apple"), ("Red Apple", "Red\u00a0Apple"), ("Lemon", "Lem\u200bon")],
)
def test_folders_that_look_alike_are_refused(tmp_path: Path, one: str, other: str) -> None:
    touch(tmp_path / one, "1.jpg")
    touch(tmp_path / other, "1.jpg")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes both names for one")
    with pytest.raises(TaxonomyError, match=r"looks like .*; rename one"):
        taxonomy_of_folders(tmp_path)


def test_a_folder_s_name_that_is_not_utf8_is_shown(tmp_path: Path) -> None:
    touch(tmp_path / "Garlic", "1.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    touch(tmp_path / os.fsdecode(b"caf\xe9"), "1.jpg")
    with pytest.raises(TaxonomyError, match=r"caf\\xe9: the name is not UTF-8; rename it"):
        taxonomy_of_folders(tmp_path)

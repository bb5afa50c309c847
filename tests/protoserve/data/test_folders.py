"""The tree that folders form, and the files in them that count as images."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.data.folders import image_files, taxonomy_of_folders, without_only_parents
from protoserve.errors import InputError, TaxonomyError
from protoserve.taxonomy import Taxonomy


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_image_files_are_sorted_and_hidden_ones_skipped(tmp_path: Path) -> None:
    touch(tmp_path / "b", "2.JPG", "1.webp", "notes.txt", ".3.png", "4.png.part")
    touch(tmp_path / ".cache", "1.jpg")
    touch(tmp_path / "a" / "deep", "1.tiff")
    touch(tmp_path, "z.gif")
    found = [file.relative_to(tmp_path).as_posix() for file in image_files(tmp_path)]
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


def test_a_folder_with_images_and_folders_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "Fruit" / "Apple", "1.jpg")
    touch(tmp_path / "Fruit", "1.jpg")
    with pytest.raises(TaxonomyError, match="both images and the folder 'Apple'"):
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

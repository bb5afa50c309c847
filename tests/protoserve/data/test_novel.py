"""Pictures of classes that a taxonomy lacks, and their deepest known ancestor."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.data.dataset import read_taxonomy
from protoserve.data.novel import NovelImages, read_novel
from protoserve.errors import InputError
from protoserve.taxonomy import Taxonomy
from tests.protoserve.data.folder_pictures import add_pictures

LEFT_OUT = {"Fruit/Lemon": "Fruit/Lemon"}


def ancestors(novel: NovelImages, taxonomy: Taxonomy) -> dict[str, str]:
    names = ["the root" if node < 0 else taxonomy.names[node] for node in novel.ancestor]
    return dict(zip(novel.images, names, strict=True))


def test_the_data_set_itself_holds_the_novel_images_of_left_out_leaves(root: Path) -> None:
    taxonomy = read_taxonomy(root).without(LEFT_OUT)
    novel = read_novel(root, "train", taxonomy, LEFT_OUT)
    assert len(novel) == 10 and novel.passed_over == 20
    assert set(ancestors(novel, taxonomy).values()) == {"Fruit"}
    assert novel.picture(0).width == 4


def test_novel_folders_are_placed_as_far_as_they_are_known(root: Path, tmp_path: Path) -> None:
    taxonomy = read_taxonomy(root)
    other = tmp_path / "other"
    for folder in ("Fruit/Pear/Anjou", "Fruit", "Bicycle", "Tool/Saw", "Fruit/Apple", "Fruit/Apple/Bitten", ".hidden"):
        add_pictures(other, folder)
    novel = read_novel(other, "test", taxonomy)
    assert ancestors(novel, taxonomy) == {
        "Fruit/Pear/Anjou/0.png": "Fruit",
        "Fruit/0.png": "Fruit",
        "Bicycle/0.png": "the root",
        "Tool/Saw/0.png": "the root",
    }
    # A known leaf, and a folder within it.
    assert novel.passed_over == 2


def test_a_taxonomy_file_says_where_flat_novel_folders_belong(tmp_path: Path) -> None:
    for leaf in ("gibbon", "lion", "tiger", "axe"):
        add_pictures(tmp_path, f"test/{leaf}")
    (tmp_path / "taxonomy.yaml").write_text("animal:\n  ape:\n    gibbon:\n  cat:\n    lion:\n    tiger:\naxe:\n")
    whole = read_taxonomy(tmp_path)
    taxonomy = whole.without(["animal/cat/tiger"])
    for left_out in ({"animal/cat/tiger": "tiger"}, dict[str, str]()):
        novel = read_novel(tmp_path, "test", taxonomy, left_out)
        assert ancestors(novel, taxonomy) == {"test/tiger/0.png": "animal/cat"}
    (tmp_path / "taxonomy.yaml").unlink()
    novel = read_novel(tmp_path, "test", taxonomy, {"animal/cat/tiger": "tiger"})
    assert ancestors(novel, taxonomy) == {"test/tiger/0.png": "animal/cat"}


def test_a_folder_without_anything_novel_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image of a class that the taxonomy lacks \(30 of known classes\)"):
        read_novel(root, "train", read_taxonomy(root))
    with pytest.raises(InputError, match="no such folder"):
        read_novel(tmp_path / "nowhere", "train", read_taxonomy(root))

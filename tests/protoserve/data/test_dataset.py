"""Splits of a folder of pictures: their images and leaves, held-out shares, left-out leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from protoserve.data.dataset import hold_out, read_inner, read_labelled, read_split, read_taxonomy
from protoserve.errors import InputError, TaxonomyError
from protoserve.images.fitting import fit
from protoserve.images.geometry import Cells, InputRule
from protoserve.taxonomy import Taxonomy
from tests.protoserve.data.folder_pictures import add_pictures


def test_images_are_known_by_their_path_and_leaf(root: Path) -> None:
    taxonomy = read_taxonomy(root)
    dataset = read_split(root, "train", taxonomy, every_leaf=True)
    assert len(dataset) == 30
    for image, leaf in zip(dataset.images, dataset.leaves, strict=True):
        assert image.startswith(f"train/{taxonomy.names[taxonomy.leaves[leaf]]}/")


def test_a_split_may_cover_a_part_of_the_leaves_but_train_may_not(root: Path) -> None:
    taxonomy = read_taxonomy(root)
    assert len(read_split(root, "val", taxonomy)) == 2
    with pytest.raises(TaxonomyError, match="leaf 'Fruit/Apple' has no images"):
        read_split(root, "val", taxonomy, every_leaf=True)


def test_a_level_with_one_child_may_be_present_or_not(root: Path) -> None:
    add_pictures(root, "test/Bulbs/Garlic", 2)
    dataset = read_split(root, "test", read_taxonomy(root))
    assert dataset.renamed == (("Bulbs/Garlic", "Garlic"),)
    assert [dataset.taxonomy.names[dataset.taxonomy.leaves[leaf]] for leaf in dataset.leaves] == ["Garlic"] * 2


def test_a_parent_of_the_taxonomy_is_never_skipped(root: Path) -> None:
    # Garlic below Fruit is another class than Garlic, although Fruit has one child in this split.
    add_pictures(root, "test/Fruit/Garlic", 2)
    with pytest.raises(TaxonomyError, match="no leaf 'Fruit/Garlic'"):
        read_split(root, "test", read_taxonomy(root))


def test_an_unknown_class_is_named_with_the_nearest_known_one(root: Path) -> None:
    add_pictures(root, "test/Fruit/Aple")
    with pytest.raises(TaxonomyError, match="no leaf 'Fruit/Aple'; did you mean 'Fruit/Apple'"):
        read_split(root, "test", read_taxonomy(root))


def test_a_missing_split_and_a_missing_folder_are_named(root: Path) -> None:
    with pytest.raises(InputError, match="no split 'vall'; did you mean 'val'"):
        read_split(root, "vall", read_taxonomy(root))
    with pytest.raises(InputError, match="no such folder"):
        read_taxonomy(root / "nowhere")
    with pytest.raises(InputError, match="holds no folder 'train'"):
        read_taxonomy(root / "val")


def test_held_out_images_are_a_share_of_every_leaf_and_depend_on_the_seed_alone(root: Path) -> None:
    dataset = read_split(root, "train", read_taxonomy(root))
    rest, held = hold_out(dataset, 0.2, seed=3)
    assert sorted(rest.images + held.images) == sorted(dataset.images)
    assert [int((held.leaves == leaf).sum()) for leaf in range(3)] == [2, 2, 2]
    shuffled = dataset.subset(list(reversed(range(len(dataset)))))
    assert set(hold_out(shuffled, 0.2, seed=3)[1].images) == set(held.images)
    assert set(hold_out(dataset, 0.2, seed=4)[1].images) != set(held.images)
    assert len(hold_out(dataset, 0.0, seed=3)[1]) == 0


def test_the_fingerprint_sees_content_and_labels(root: Path) -> None:
    taxonomy = read_taxonomy(root)
    before = read_split(root, "train", taxonomy).fingerprint()
    assert read_split(root, "train", taxonomy).fingerprint() == before
    Image.new("RGB", (4, 4), (99, 99, 99)).save(root / "train/Garlic/0.png")
    assert read_split(root, "train", taxonomy).fingerprint() != before


def test_a_taxonomy_file_over_flat_folders(tmp_path: Path) -> None:
    for leaf in ("gibbon", "lion"):
        add_pictures(tmp_path, f"train/{leaf}")
    (tmp_path / "taxonomy.yaml").write_text("animal:\n  ape:\n    gibbon:\n  cat:\n    lion:\n")
    dataset = read_split(tmp_path, "train", read_taxonomy(tmp_path), every_leaf=True)
    names = dataset.taxonomy.names
    assert [names[dataset.taxonomy.leaves[leaf]] for leaf in dataset.leaves] == [
        "animal/ape/gibbon",
        "animal/cat/lion",
    ]


LEFT_OUT = {"Fruit/Lemon": "Fruit/Lemon"}


def test_images_of_a_left_out_leaf_are_skipped(root: Path) -> None:
    taxonomy = read_taxonomy(root).without(LEFT_OUT)
    dataset = read_split(root, "train", taxonomy, left_out=LEFT_OUT, every_leaf=True)
    assert len(dataset) == 20
    assert not any("Lemon" in image for image in dataset.images)
    with pytest.raises(TaxonomyError, match="no leaf 'Fruit/Lemon'"):
        read_split(root, "train", taxonomy)


def test_a_left_out_leaf_is_known_by_another_path_too(root: Path) -> None:
    add_pictures(root, "val/Citrus/Garlic")
    taxonomy = read_taxonomy(root).without(["Garlic"])
    add_pictures(root, "val/Fruit/Apple")
    (root / "val/Garlic/0.png").unlink()
    (root / "val/Garlic/1.png").unlink()
    (root / "val/Garlic").rmdir()
    dataset = read_split(root, "val", taxonomy, left_out={"Garlic": "Garlic"})
    assert dataset.images == ("val/Fruit/Apple/0.png",)
    assert dataset.renamed == ()


def test_an_image_is_found_by_its_identity(root: Path) -> None:
    dataset = read_split(root, "val", read_taxonomy(root))
    assert dataset.index("val/Garlic/1.png") == 1
    assert dataset.file(1) == root / "val/Garlic/1.png"
    with pytest.raises(InputError, match=r"the split 'val' holds no image 'val/Garlic/7\.png'"):
        dataset.index("val/Garlic/7.png")


def test_an_image_s_geometry_is_that_of_its_fitted_picture(root: Path) -> None:
    Image.new("RGB", (40, 20)).save(root / "val/Garlic/0.png")
    dataset = read_split(root, "val", read_taxonomy(root))
    rule = InputRule(height=10, width=10, resize="crop")
    assert dataset.geometry(0, rule) == fit(dataset.picture(0), rule).geometry
    assert dataset.geometry(0, rule).cell_box(0, Cells(1, 1)) == (10, 0, 30, 20)


# ---- names, links and files that are passed over ---------------------------------------------------------------------


def test_a_class_is_found_whatever_the_composition_of_its_name(tmp_path: Path) -> None:
    add_pictures(tmp_path, "train/Cr\u00e8me", 3)
    add_pictures(tmp_path, "train/Garlic", 3)
    add_pictures(tmp_path, "test/Cre\u0300me", 2)
    dataset = read_split(tmp_path, "test", read_taxonomy(tmp_path))
    assert len(dataset) == 2 and dataset.images[0] == "test/Cre\u0300me/0.png"
    assert dataset.taxonomy.names[dataset.taxonomy.leaves[dataset.leaves[0]]] == "Cr\u00e8me"


def test_an_unknown_class_that_looks_like_a_known_one_is_told_apart(root: Path) -> None:
    add_pictures(root, "test/Gar\u200blic")
    with pytest.raises(TaxonomyError, match=r"'Gar\\u200blic' looks like 'Garlic': write it as in train"):
        read_split(root, "test", read_taxonomy(root))


def test_a_linked_class_folder_counts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add_pictures(elsewhere, "pictures", 6)
    (root / "test").mkdir()
    (root / "test" / "Garlic").symlink_to(elsewhere / "pictures", target_is_directory=True)
    dataset = read_split(root, "test", read_taxonomy(root))
    assert len(dataset) == 6 and dataset.passed_over == {}
    assert dataset.picture(1).picture.getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_val_may_have_another_name(root: Path, name: str) -> None:
    (root / "val").rename(root / name)
    taxonomy = read_taxonomy(root)
    for split in ("val", name):
        dataset = read_split(root, split, taxonomy)
        assert dataset.split == "val" and dataset.images == (f"{name}/Garlic/0.png", f"{name}/Garlic/1.png")


def test_files_that_are_passed_over_are_counted_and_told(root: Path) -> None:
    (root / "train" / "Garlic" / "notes.txt").touch()
    dataset = read_split(root, "train", read_taxonomy(root))
    assert dataset.passed_over == {"other_suffix": 1}
    assert dataset.notes() == ["note: train: passed over 1 file: 1 without the suffix of a picture"]
    left = dataset.without(["train/Garlic/0.png", "not among them"])
    assert len(left) == len(dataset) - 1 and left.passed_over == {"other_suffix": 1, "broken": 1}


def test_a_picture_s_name_that_is_not_utf8_is_shown(root: Path) -> None:
    add_pictures(root, "train/Garlic", 1)
    (root / "train/Garlic/0.png").rename(root / "train" / "Garlic" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(InputError, match=r"caf\\xe9\.png: the name is not UTF-8; rename it"):
        read_split(root, "train", read_taxonomy(root))


def test_images_of_an_inner_node_are_read_apart(root: Path) -> None:
    add_pictures(root, "train/Fruit", 3)
    taxonomy = read_taxonomy(root)
    leaves, inner = read_split(root, "train", taxonomy, every_leaf=True), read_inner(root, "train", taxonomy)
    assert leaves.to_leaf.all() and len(leaves) == 30
    assert leaves.notes() == [
        "note: train: passed over 3 files: 3 labelled only down to an inner node of the class tree"
    ]
    assert not inner.to_leaf.any() and inner.notes() == []
    assert [taxonomy.names[node] for node in taxonomy.label_nodes[inner.leaves]] == ["Fruit"] * 3
    together = read_labelled(root, "train", taxonomy)
    assert together.images == leaves.images + inner.images and together.notes() == []
    assert len(read_inner(root, "val", taxonomy)) == 0


def test_a_split_of_inner_images_alone_holds_none(root: Path) -> None:
    add_pictures(root, "test/Fruit", 2)
    with pytest.raises(InputError, match=r"holds no images of the taxonomy's 3 leaves \(passed over 2 files: 2 lab"):
        read_split(root, "test", read_taxonomy(root))


def test_images_of_a_parent_that_lost_its_leaves_are_left_out_with_them(root: Path) -> None:
    add_pictures(root, "train/Fruit", 2)
    whole = read_taxonomy(root)
    left_out = {name: name for name in ("Fruit/Apple", "Fruit/Lemon")}
    taxonomy = Taxonomy.from_paths(["Garlic", "Onion"])
    assert "Fruit" in whole.names and "Fruit" not in taxonomy.names
    assert len(read_inner(root, "train", taxonomy, left_out=left_out)) == 0

"""The parts of a data set on disk: which images each holds, with and without val, and with leaves left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.errors import InputError, TaxonomyError
from training.config import Config, parse_config
from training.data.splits import read_splits

LEAVES = ("A/x", "A/y", "B")
IMAGES = {"train": 4, "val": 2, "test": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 training, 2 validation and 3 test images of each of three leaves, no two alike."""
    folder = tmp_path_factory.mktemp("splits") / "data"
    generator = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for leaf in LEAVES:
            (folder / split / leaf).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / leaf / f"{number}.png")
    return folder


def part_of(data: Path, folder: Path, *splits: str) -> Path:
    """A data set that holds only these splits of `data`."""
    folder.mkdir()
    for split in splits:
        shutil.copytree(data / split, folder / split)
    return folder


def config(**section: object) -> Config:
    return parse_config({"name": "a", "data": section}, "c")


def images(split: str, leaves: tuple[str, ...] = LEAVES) -> set[str]:
    return {f"{split}/{leaf}/{number}.png" for leaf in leaves for number in range(IMAGES[split])}


def leaf_names(dataset: Dataset) -> list[str]:
    return [dataset.taxonomy.names[dataset.taxonomy.leaves[leaf]] for leaf in dataset.leaves]


def test_selection_is_what_is_held_out_of_train_and_then_val(data: Path) -> None:
    splits = read_splits(config(hold_out=0.25), data)
    held = splits.selection.images[: len(LEAVES)]
    assert {image.rpartition("/")[0] for image in held} == {f"train/{leaf}" for leaf in LEAVES}
    assert set(splits.fit.images) == images("train") - set(held)
    assert splits.selection.images[len(LEAVES) :] == splits.validation.images
    assert set(splits.validation.images) == images("val")
    assert splits.test is not None and set(splits.test.images) == images("test")
    for dataset in (splits.fit, splits.selection, splits.validation, splits.test):
        assert leaf_names(dataset) == [image.partition("/")[2].rpartition("/")[0] for image in dataset.images]


def test_without_val_the_held_out_images_are_validated_on_too(data: Path, tmp_path: Path) -> None:
    splits = read_splits(config(hold_out=0.5), part_of(data, tmp_path / "data", "train"))
    assert splits.test is None
    assert splits.validation is splits.selection
    assert len(splits.fit) == len(splits.selection) == 6
    assert {*splits.fit.images, *splits.selection.images} == images("train")


def test_with_nothing_held_out_val_alone_selects(data: Path) -> None:
    splits = read_splits(config(hold_out=0), data)
    assert set(splits.fit.images) == images("train")
    assert splits.selection is splits.validation
    assert set(splits.selection.images) == images("val")


def test_a_run_without_images_to_select_on_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no val split and data\.hold_out is 0"):
        read_splits(config(hold_out=0), part_of(data, tmp_path / "data", "train", "test"))


def test_the_data_seed_chooses_what_is_held_out_and_the_seed_of_the_run_does_not(data: Path) -> None:
    def held(**seeds: object) -> tuple[str, ...]:
        content = {"name": "a", "seed": seeds.get("seed", 0), "data": {"hold_out": 0.5, "seed": seeds.get("data", 0)}}
        return read_splits(parse_config(content, "c"), data).selection.images

    assert held() == held(seed=1)
    assert held() != held(data=1)


def test_the_fingerprint_is_that_of_all_training_images(data: Path) -> None:
    whole = read_split(data, "train", read_taxonomy(data)).fingerprint()
    assert read_splits(config(hold_out=0.25), data).fingerprint == whole
    assert read_splits(config(hold_out=0.5), data).fingerprint == whole
    assert read_splits(config(leave_out=["B"]), data).fingerprint != whole


def test_left_out_leaves_are_in_no_split(data: Path) -> None:
    splits = read_splits(config(leave_out=["A/x"]), data)
    assert dict(splits.left_out) == {"A/x": "A/x"}
    for dataset, split in ((splits.validation, "val"), (splits.test, "test")):
        assert dataset is not None and set(dataset.images) == images(split, ("A/y", "B"))
    assert {*splits.fit.images, *splits.selection.images} == images("train", ("A/y", "B")) | images("val", ("A/y", "B"))
    assert {splits.fit.taxonomy.names[leaf] for leaf in splits.fit.taxonomy.leaves} == {"A/y", "B"}
    assert read_splits(config(), data).left_out == {}


def test_a_left_out_leaf_keeps_the_folder_that_a_taxonomy_file_gives_it(data: Path, tmp_path: Path) -> None:
    folder = part_of(data, tmp_path / "data", "train", "val")
    (folder / "taxonomy.yaml").write_text("Ex: A/x\nEy: A/y\nBe: B\n")
    splits = read_splits(config(leave_out=["Ey"]), folder)
    assert dict(splits.left_out) == {"Ey": "A/y"}
    assert set(splits.validation.images) == images("val", ("A/x", "B"))


def test_an_unknown_leaf_to_leave_out_is_named(data: Path) -> None:
    with pytest.raises(TaxonomyError, match="no leaf 'A/z' to leave out"):
        read_splits(config(leave_out=["A/z"]), data)
    with pytest.raises(TaxonomyError, match="'A' is not a leaf to leave out"):
        read_splits(config(leave_out=["A"]), data)


def test_folders_read_as_another_leaf_are_noted_as_they_are_spelled(data: Path) -> None:
    dataset = Dataset(
        data, "val", read_taxonomy(data), (), np.empty(0, dtype=np.int64), (("[red]/x", "x"), ("y/z", "z"))
    )
    assert dataset.notes() == ["note: val/[red]/x is read as the leaf x", "note: val/y/z is read as the leaf z"]


# ---- pictures that are broken, passed over or in the data twice ------------------------------------------------------


def whole(data: Path, folder: Path) -> Path:
    return part_of(data, folder, "train", "val", "test")


def test_every_broken_picture_of_every_split_is_listed_before_training(data: Path, tmp_path: Path) -> None:
    folder = whole(data, tmp_path / "data")
    (folder / "test/B/2.png").write_bytes(b"")
    (folder / "train/A/x/0.png").write_bytes(b"text")
    (folder / "val/B/1.png").unlink()
    (folder / "val/B/1.png").symlink_to("gone.png")
    with pytest.raises(InputError) as raised:
        read_splits(config(), folder)
    assert str(raised.value) == (
        "3 pictures can't be read: train/A/x/0.png (is not a picture), val/B/1.png (no such file), "
        "test/B/2.png (is empty); mend or remove them, or leave them out with --skip-broken"
    )


def test_broken_pictures_are_left_out_on_request_and_counted(data: Path, tmp_path: Path) -> None:
    folder = whole(data, tmp_path / "data")
    (folder / "test/B/2.png").write_bytes(b"")
    (folder / "train/A/x/0.png").write_bytes(b"text")
    splits = read_splits(config(), folder, skip_broken=True)
    assert splits.test is not None and len(splits.test) == 8
    assert splits.broken == ("train/A/x/0.png", "test/B/2.png")
    assert splits.passed_over == {"train": {"broken": 1}, "val": {}, "test": {"broken": 1}}
    assert "note: test: passed over 1 file: 1 that can't be read" in splits.notes
    # The fingerprint is that of the pictures that are left, so that the same data set is found again.
    kept = read_split(folder, "train", read_taxonomy(folder)).without(splits.broken)
    assert splits.fingerprint == kept.fingerprint()


def test_a_leaf_that_only_has_broken_pictures_is_named(data: Path, tmp_path: Path) -> None:
    folder = whole(data, tmp_path / "data")
    for file in (folder / "train/B").iterdir():
        file.write_bytes(b"")
    with pytest.raises(TaxonomyError, match="leaf 'B' has no picture that can be read"):
        read_splits(config(), folder, skip_broken=True)


def test_files_that_are_not_pictures_are_counted(data: Path, tmp_path: Path) -> None:
    folder = whole(data, tmp_path / "data")
    (folder / "train/B/notes.txt").write_text("red")
    (folder / "train/B/.hidden.png").write_bytes(b"")
    (folder / "train/B/.DS_Store").write_bytes(b"")
    splits = read_splits(config(), folder)
    assert splits.passed_over == {"train": {"other_suffix": 1, "hidden": 1}, "val": {}, "test": {}}
    assert splits.notes == ("note: train: passed over 2 files: 1 without the suffix of a picture, 1 hidden",)


def test_the_same_picture_in_two_splits_or_classes_is_warned_of(data: Path, tmp_path: Path) -> None:
    folder = whole(data, tmp_path / "data")
    shutil.copy(folder / "train/A/x/0.png", folder / "test/A/x/copy.png")
    shutil.copy(folder / "train/A/x/1.png", folder / "train/B/copy.png")
    splits = read_splits(config(), folder)
    assert splits.copies == {"test": 1, "two_classes": 1}
    assert splits.notes == (
        "warning: 1 picture of test are also in train, for example test/A/x/copy.png = train/A/x/0.png",
        "warning: 1 picture of train are under two classes, for example train/B/copy.png = train/A/x/1.png",
    )
    assert read_splits(config(), data).copies == {}


def test_auto_holds_out_only_where_there_is_no_val_split(data: Path, tmp_path: Path) -> None:
    with_val = read_splits(config(hold_out="auto"), data)
    assert set(with_val.fit.images) == images("train")
    assert with_val.selection is with_val.validation
    without = read_splits(config(hold_out="auto"), part_of(data, tmp_path / "data", "train", "test"))
    assert (len(without.fit), len(without.selection)) == (9, 3)


def test_what_was_found_is_said_first_and_small_classes_are_named(data: Path) -> None:
    found, held, few = read_splits(config(hold_out=0.25), data).found
    assert found == "3 classes on 2 levels; pictures: 12 train, 6 val, 9 test; to learn from, 3 a class"
    assert held == "held out of train to select on (data.hold_out): 3 pictures"
    assert few == "warning: fewer than 10 pictures to learn from: B (3), A/x (3), A/y (3); add some"


def test_pictures_of_an_inner_node_are_learned_from_and_never_selected_on(data: Path, tmp_path: Path) -> None:
    whole = part_of(data, tmp_path / "whole", "train", "val")
    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(whole / "train" / "A" / f"{name}.png")
    splits, plain = read_splits(config(hold_out=0.25), whole), read_splits(config(hold_out=0.25), data)
    count = len(plain.fit)
    assert splits.fit.images[:count] == plain.fit.images and splits.selection.images == plain.selection.images
    assert splits.fit.images[count:] == ("train/A/a.png", "train/A/b.png", "train/A/c.png")
    taxonomy = splits.fit.taxonomy
    assert {taxonomy.names[node] for node in taxonomy.label_nodes[splits.fit.leaves[count:]]} == {"A"}
    assert splits.found[-1] == (
        "3 pictures of train are labelled only down to an inner node, and learned from down to there: A (3)"
    )
    assert splits.fingerprint == plain.fingerprint and not splits.notes
    assert splits.inner is not None and splits.inner.images == 3 and plain.inner is None


def test_where_all_leaves_compete_at_once_pictures_of_an_inner_node_are_passed_over(data: Path, tmp_path: Path) -> None:
    whole = part_of(data, tmp_path / "whole", "train", "val")
    Image.new("RGB", (4, 4)).save(whole / "train" / "A" / "a.png")
    splits = read_splits(parse_config({"name": "a", "model": {"kind": "flat"}}, "c"), whole)
    assert splits.inner is None and splits.fit.to_leaf.all()
    assert splits.passed_over["train"] == {"inner": 1} and "1 labelled only down to an inner node" in splits.notes[0]

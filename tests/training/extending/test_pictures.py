"""The pictures behind an extension: found again by name, under the changed tree, and kept by the new run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.errors import InputError
from protoserve.run.similarities import read_similarities
from training.extending.changes import changed_tree, read_changes
from training.extending.finished import read_finished
from training.extending.pictures import copies_among, keep_pictures, learned_pictures, new_pictures, remapped


def test_a_run_finds_the_pictures_that_it_learned_from(small_run: Path, small_data: Path) -> None:
    finished, quiet = read_finished(small_run), Console(quiet=True)
    kept = read_similarities(small_run, len(finished.sources))
    found = learned_pictures(small_run, small_data, finished.taxonomy, kept, finished.config, quiet)
    again = learned_pictures(small_run, small_data, finished.taxonomy, None, finished.config, quiet)
    for one, other in zip(found, again, strict=True):
        assert one.images == other.images
        assert (one.leaves == other.leaves).all()


def test_a_picture_that_is_gone_is_named(small_run: Path, tmp_path: Path) -> None:
    finished = read_finished(small_run)
    kept = read_similarities(small_run, len(finished.sources))
    with pytest.raises(InputError, match=r"no such picture, but .* learned from it; give the run's own data set"):
        learned_pictures(small_run, tmp_path, finished.taxonomy, kept, finished.config, Console(quiet=True))


def test_images_of_removed_classes_go_and_the_others_keep_their_class(small_data: Path) -> None:
    train = read_split(small_data, "train", read_taxonomy(small_data))
    tree = changed_tree(train.taxonomy, read_changes([], ["A/x"], ["B=Bee"], []))
    stay = remapped(train, tree)
    names = [tree.taxonomy.names[tree.taxonomy.leaves[leaf]] for leaf in stay.leaves]
    folders = [image.split("/", 1)[1].rpartition("/")[0] for image in stay.images]
    assert set(zip(folders, names, strict=True)) == {("A/y", "A/y"), ("B", "Bee")}
    assert len(stay) == 20


def test_new_pictures_are_held_out_named_and_kept(
    small_data: Path, small_config: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for name in ("a", "deep/b", "c", "d"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 5, 5)).save(folder / f"{name}.png")
    tree = changed_tree(read_taxonomy(small_data), read_changes([f"A/w={folder}"], [], [], []))
    options: dict[str, Any] = {"has_val": False, "skip_broken": False, "console": Console(quiet=True)}
    fit, held = new_pictures({"A/w": folder}, tree, small_data, small_config(), **options)
    assert (len(fit), len(held)) == (3, 1)
    assert {*fit.images, *held.images} == {f"added/A/w/{name}.png" for name in ("a", "deep/b", "c", "d")}
    for part in (fit, held):
        keep_pictures(part, tmp_path / "run")
        for image in part.images:
            assert (tmp_path / "run" / image).read_bytes() == part.elsewhere[image].read_bytes()
    (folder / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 picture can't be read: added/A/w/c\.png"):
        new_pictures({"A/w": folder}, tree, small_data, small_config(), **options)
    fit, held = new_pictures({"A/w": folder}, tree, small_data, small_config(), **{**options, "skip_broken": True})
    assert len(fit) + len(held) == 3


def test_a_picture_that_the_run_knows_already_is_told(small_data: Path) -> None:
    train, screen = read_split(small_data, "train", read_taxonomy(small_data)), Console(record=True, width=200)
    copies_among(train, train.subset(np.array([0])), screen)
    assert "warning: 1 picture of the new classes are also in train" in screen.export_text()

"""The audited pictures: chosen by the seed, each with another of another leaf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.audit.sample import choose, fitted_pictures, other_pictures, read_sample
from protoserve.data.dataset import Dataset
from protoserve.errors import ImageError, InputError
from tests.protoserve.audit.toys import RULE, TAXONOMY, picture


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Ten pictures of 32 × 32 pixels; the square of picture i is at cell i."""
    names = []
    for image in range(10):
        names.append(f"test/{image}.png")
        (tmp_path / "test").mkdir(exist_ok=True)
        Image.fromarray(picture(image % 2, image)).save(tmp_path / names[-1])
    return Dataset(tmp_path, "test", TAXONOMY, tuple(names), np.arange(10) % 2)


def test_the_seed_chooses_the_pictures(dataset: Dataset) -> None:
    first, again, other = (choose(dataset, 4, seed) for seed in (0, 0, 1))
    assert first.images == again.images != other.images
    assert list(first.images) == sorted(first.images)
    assert choose(dataset, 99, 0).images == dataset.images


def test_pictures_names_and_leaves_stay_together(dataset: Dataset) -> None:
    done: list[int] = []
    sample = read_sample(dataset, RULE, 6, seed=0, advance=done.append)
    assert len(sample) == len(done) == 6
    for index, name in enumerate(sample.names):
        image = int(Path(name).stem)
        assert sample.leaves[index] == image % 2
        assert (sample.arrays[index] == picture(image % 2, image)).all()
        assert (sample.geometries[index].picture_width, sample.geometries[index].scale_x) == (32, 1.0)


def test_every_other_picture_is_of_another_leaf_if_there_is_one() -> None:
    leaves = np.array([0, 0, 1, 2, 0])
    others = other_pictures(leaves, seed=0)
    assert (leaves[others] != leaves).all()
    alone = other_pictures(np.zeros(3, dtype=np.int64), seed=0)
    assert (alone != np.arange(3)).all()


def test_one_picture_is_too_few(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="needs at least 2 of 'test', not 1; raise --images"):
        read_sample(dataset.subset([0]), RULE, 5, seed=0)


def test_a_broken_picture_is_named(dataset: Dataset) -> None:
    dataset.file(3).write_bytes(dataset.file(3).read_bytes()[:60])
    with pytest.raises(ImageError, match=r"3\.png"):
        list(fitted_pictures(dataset, RULE))

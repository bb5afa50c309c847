"""Features are computed once, kept on disk, and computed again where they were cut off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.errors import InputError
from protoserve.images.geometry import InputRule
from training.data.pictures import Views, batches
from training.features.cache import FeatureCache, cached_features


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    generator = np.random.default_rng(0)
    for leaf in ("a", "b"):
        (tmp_path / "train" / leaf).mkdir(parents=True)
        for number in range(4):
            noise = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "train" / leaf / f"{number}.png")
    return read_split(tmp_path, "train", read_taxonomy(tmp_path))


VIEWS = Views(InputRule(height=30, width=40, resize="stretch"), seed=3)


def cache(
    dataset: Dataset,
    tmp_path: Path,
    features: Callable[[Tensor], Tensor],
    dtype: type[np.float32] | type[np.float16] = np.float32,
) -> FeatureCache:
    pictures = batches(lambda number: VIEWS.of(dataset, number, 0), range(len(dataset)), 3)
    return cached_features(
        *(tmp_path / "cache", "fit", features, pictures, 0),
        images=len(dataset),
        device=torch.device("cpu"),
        advance=lambda done: None,
        dtype=dtype,
    )


def test_features_that_the_type_cannot_hold_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"features reach 7e\+04, more than float16 holds; set finetune.fresh: true"):
        cache(dataset, tmp_path, lambda pictures: torch.full((len(pictures), 2), 7e4), np.float16)
    # Nothing is left that a later run would take for whole.
    assert [*(tmp_path / "cache").iterdir()] == []


def test_a_disk_without_room_is_an_error_before_anything_is_written(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("training.features.cache.shutil.disk_usage", lambda path: usage._replace(free=3))
    with pytest.raises(InputError, match=r"fit-0.npy: needs .* GB, the disk has 0.0 GB left; give --run"):
        cache(dataset, tmp_path, lambda pictures: pictures.float().mean((1, 2)))


def test_pieces_of_several_processes_are_read_as_one() -> None:
    rows = np.arange(20, dtype=np.float16).reshape(10, 2)
    whole, parts = FeatureCache((rows,)), FeatureCache((rows[:3], rows[3:4], rows[4:]))
    assert len(whole) == len(parts) == 10
    numbers = [9, 0, 3, 3, 2, 4]
    assert torch.equal(parts.batch(numbers), whole.batch(numbers))
    assert parts.batch(numbers).dtype == torch.float32


def test_a_cache_of_another_number_of_images_is_computed_again(dataset: Dataset, tmp_path: Path) -> None:
    cache(dataset, tmp_path, lambda pictures: pictures.float().mean((1, 2)))
    note = tmp_path / "cache" / "fit-0.json"
    note.write_text(note.read_text().replace('"images": 8', '"images": 4'))
    again = cache(dataset, tmp_path, lambda pictures: torch.zeros(len(pictures), 3))
    assert torch.equal(again.batch([0, 7]), torch.zeros(2, 3))


def test_the_cache_is_computed_once_and_again_after_an_interruption(dataset: Dataset, tmp_path: Path) -> None:
    def features(pictures: Tensor) -> Tensor:
        return pictures.float().mean((1, 2))

    def fails(pictures: Tensor) -> Tensor:
        raise AssertionError("computed again")

    first = cache(dataset, tmp_path, features)
    expected = np.stack([VIEWS.of(dataset, number, 0).mean((0, 1)) for number in range(len(dataset))])
    np.testing.assert_allclose(first.batch([3, 0]), expected[[3, 0]], rtol=1e-5)
    assert torch.equal(cache(dataset, tmp_path, fails).batch([*range(8)]), first.batch([*range(8)]))
    (tmp_path / "cache" / "fit-0.json").unlink()
    with pytest.raises(AssertionError, match="computed again"):
        cache(dataset, tmp_path, fails)

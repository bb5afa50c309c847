"""Pictures in memory are those of the data set at model size, and their features those of the network in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protoserve.data.dataset import Dataset, read_split, read_taxonomy
from protoserve.images.fitting import fit
from protoserve.images.geometry import InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.model_file import NetworkDescription, build_autoencoder
from protoserve.taxonomy import Taxonomy
from training.data.pictures import MIRRORED
from training.features.feed import Part
from training.features.memory import PicturesInMemory, in_memory

RULE = InputRule(height=10, width=12, resize="stretch")
QUIET = Console(quiet=True)


def network(seed: int) -> PrototypeAutoencoder:
    """A random autoencoder for pictures that `RULE` makes."""
    torch.manual_seed(seed)
    description = NetworkDescription(
        kind="autoencoder",
        taxonomy=Taxonomy.from_paths(["0", "1"]).to_dict(),
        input=RULE,
        dimensions=18,
        similarity="negative-distance",
        epsilon=0.0,
        prototype_child=[0, 1],
        channels=[4, 2],
        grey=True,
    )
    return build_autoencoder(description).eval()


@pytest.fixture(scope="module")
def fit_part(tiny_idx: Path) -> Dataset:
    return read_split(tiny_idx, "train", read_taxonomy(tiny_idx)).subset(range(9))


@pytest.fixture(scope="module")
def selection_part(tiny_idx: Path) -> Dataset:
    return read_split(tiny_idx, "test", read_taxonomy(tiny_idx)).subset(range(5))


def test_pictures_of_another_size_and_in_folders_are_read_into_memory(tiny_idx: Path, tmp_path: Path) -> None:
    dataset = read_split(tiny_idx, "test", read_taxonomy(tiny_idx))
    for number in range(4):
        folder = tmp_path / "test" / "AB"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        dataset.picture(number).picture.save(folder / f"{number}.png")
    folders = read_split(tmp_path, "test", Taxonomy.from_paths(["A", "B"]))
    for data in (dataset, folders):
        found = in_memory(data, RULE, QUIET)
        assert found.shape == (len(data), 10, 12, 3) and found.dtype == torch.uint8
        for number in range(len(data)):
            np.testing.assert_array_equal(found[number].numpy(), fit(data.picture(number), RULE).array)


def test_grey_pictures_of_model_size_are_not_copied(fit_part: Dataset) -> None:
    found = in_memory(fit_part, InputRule(height=20, width=16, resize="stretch"), QUIET)
    assert fit_part.pixels is not None
    assert found.shape == (9, 20, 16, 3)
    assert found.data_ptr() == fit_part.pixels.ctypes.data
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel].numpy(), fit_part.pixels)


@pytest.mark.parametrize("part", ["fit", "selection"])
def test_features_are_the_network_s_own_of_the_pictures_asked_for(
    part: Part, fit_part: Dataset, selection_part: Dataset
) -> None:
    memory = PicturesInMemory(fit_part, selection_part, RULE, torch.device("cpu"), QUIET)
    dataset = fit_part if part == "fit" else selection_part
    for seed in (0, 1):
        used = network(seed)
        memory.use(used)
        batches = [np.array([4, 0]), np.array([3])]
        for numbers, found in zip(batches, memory.features(part, batches), strict=True):
            pictures = np.stack([fit(dataset.picture(number), RULE).array for number in numbers.tolist()])
            with torch.inference_mode():
                expected = used.features(torch.from_numpy(pictures))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(memory.batch_features(part, numbers), found)


def test_there_is_no_view_but_the_plain_one(fit_part: Dataset, selection_part: Dataset) -> None:
    memory = PicturesInMemory(fit_part, selection_part, RULE, torch.device("cpu"), QUIET)
    memory.use(network(0))
    with pytest.raises(AssertionError):
        memory.batch_features("fit", np.array([0]), MIRRORED)

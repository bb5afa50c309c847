"""Pictures with labels that a random bundle mostly gets wrong, and its answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import protoserve
from protoserve.data.dataset import Dataset, read_split
from protoserve.reporting.mistakes import Examined, examine
from protoserve.reporting.pictures import PictureStore
from tests.bundles import LEAVES


@contextmanager
def untracked(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """No progress is shown."""
    yield lambda items: None


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of noise for each leaf of the tiny bundle, in the split `test`."""
    root = tmp_path_factory.mktemp("labelled") / "noise"
    generator = np.random.default_rng(3)
    for leaf in LEAVES:
        (root / "test" / leaf).mkdir(parents=True)
        for number in range(4):
            noise = generator.integers(0, 255, (6, 9, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC)
            picture.save(root / "test" / leaf / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def model(tiny_bundle: Path) -> protoserve.Classifier:
    """The tiny bundle, opened."""
    return protoserve.load(tiny_bundle, device="cpu")


@pytest.fixture(scope="session")
def dataset(labelled: Path, model: protoserve.Classifier) -> Dataset:
    """The labelled pictures."""
    return read_split(labelled, "test", model.taxonomy)


@pytest.fixture(scope="session")
def examined(model: protoserve.Classifier, dataset: Dataset) -> tuple[Examined, PictureStore]:
    """What the tiny bundle says about the labelled pictures, and the pictures of its mistakes."""
    store = PictureStore()
    return examine(model, dataset, store, untracked), store

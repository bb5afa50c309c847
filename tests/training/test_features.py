"""Views, the cache and the principal components."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.images.geometry import InputRule
from training.data.pictures import Views, batches
from training.features.cache import cached_features
from training.progress import tracked
from training.prototypes.reduction import CellMoments


@pytest.fixture
def dataset(tmp_path: Path):
    generator = np.random.default_rng(0)
    for leaf in ("a", "b"):
        (tmp_path / "train" / leaf).mkdir(parents=True)
        for number in range(4):
            noise = generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "train" / leaf / f"{number}.png")
    return read_split(tmp_path, "train", read_taxonomy(tmp_path))


VIEWS = Views(InputRule(height=30, width=40, resize="stretch"), seed=3)


def test_a_view_is_a_function_of_seed_image_and_view(dataset) -> None:
    plain, mirrored = VIEWS.of(dataset, 1, 0), VIEWS.of(dataset, 1, 1)
    np.testing.assert_array_equal(plain, np.asarray(Image.open(dataset.file(1))))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    np.testing.assert_array_equal(VIEWS.of(dataset, 1, 5), VIEWS.of(dataset, 1, 5))
    assert (VIEWS.of(dataset, 1, 5) != VIEWS.of(dataset, 1, 6)).any()
    assert (VIEWS.of(dataset, 1, 5) != replace(VIEWS, seed=4).of(dataset, 1, 5)).any()


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_batches_keep_the_order_and_lose_nothing(dataset, size: int) -> None:
    order = [5, 1, 7, 0, 3, 2, 6, 4]
    found = list(batches(lambda number: VIEWS.of(dataset, number, 0), order, size))
    assert [number for numbers, _ in found for number in numbers] == order
    assert all(len(numbers) == len(pictures) <= size for numbers, pictures in found)
    np.testing.assert_array_equal(found[0][1][0], VIEWS.of(dataset, 5, 0))


def cache(dataset, tmp_path: Path, features):
    pictures = batches(lambda number: VIEWS.of(dataset, number, 0), range(len(dataset)), 3)
    return cached_features(
        *(tmp_path / "cache", "fit", features, pictures, 0),
        images=len(dataset),
        device=torch.device("cpu"),
        advance=lambda done: None,
    )


def test_the_cache_is_computed_once_and_again_when_it_was_cut_off(dataset, tmp_path: Path) -> None:
    def features(pictures):
        return pictures.float().mean((1, 2))

    def fails(pictures) -> None:
        raise AssertionError("computed again")

    first = cache(dataset, tmp_path, features)
    expected = np.stack([VIEWS.of(dataset, number, 0).mean((0, 1)) for number in range(len(dataset))])
    np.testing.assert_allclose(first.batch([3, 0]), expected[[3, 0]], rtol=1e-5)
    assert torch.equal(cache(dataset, tmp_path, fails).batch([*range(8)]), first.batch([*range(8)]))
    (tmp_path / "cache" / "fit-0.json").unlink()
    with pytest.raises(AssertionError, match="computed again"):
        cache(dataset, tmp_path, fails)


def test_principal_components_agree_with_a_decomposition() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(6, 6)
    maps = torch.einsum("ij,njhw->nihw", mixing, torch.randn(40, 6, 5, 5)) + 3.0
    moments = CellMoments(6)
    for part in maps.split(7):
        moments.add(part)
    weight, bias, variances = moments.principal_components(3)
    cells = maps.movedim(1, -1).flatten(0, 2).double()
    _, singular, axes = torch.linalg.svd(cells - cells.mean(0), full_matrices=False)
    expected = singular[:3] ** 2 / len(cells)
    torch.testing.assert_close(variances, (expected / expected.mean()).float(), atol=1e-3, rtol=1e-3)
    for found, axis in zip(weight.double(), axes[:3], strict=True):
        assert abs(float(nn.functional.cosine_similarity(found, axis, dim=0))) == pytest.approx(1.0, abs=1e-4)
    reduced = cells.float() @ weight.t() + bias
    torch.testing.assert_close(reduced.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(reduced.var(0), variances, atol=1e-2, rtol=1e-2)


def test_progress_stays_off_a_log_file() -> None:
    stream = io.StringIO()
    with tracked(Console(file=stream), "work", 3) as advance:
        advance(3)
    assert stream.getvalue() == ""

"""What a run is fed with: the views of each step, and what is kept for later ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from training.config import Config
from training.data.pictures import PLAIN
from training.data.splits import read_splits
from training.features.building import freeze_all_but, trainable_parameters
from training.features.feed import Part
from training.features.shared_cache import GIGABYTE, SharedCache
from training.loop.trainer import Trainer
from training.processes import ALONE, Processes

TRAIN_FROM = "stage2.2"
PARTS: tuple[Part, ...] = ("fit", "selection")


def make(
    config: Config, data: Path, run: Path, *, processes: Processes = ALONE, cache: SharedCache | None = None
) -> Trainer:
    run.mkdir(exist_ok=True)
    return Trainer(
        config,
        read_splits(config, data),
        run,
        linear=False,
        device=torch.device("cpu"),
        console=Console(quiet=True),
        processes=processes,
        cache=cache,
    )


@pytest.fixture
def trainer(small_data: Path, small_config: Callable[..., Config], tmp_path: Path) -> Trainer:
    return make(small_config(finetune={"epochs": 1, "train_from": TRAIN_FROM}), small_data, tmp_path / "run")


def pictures(trainer: Trainer, part: Part, numbers: list[int], view: int) -> Tensor:
    dataset = trainer.feed.datasets[part]
    return torch.from_numpy(np.stack([trainer.feed.views.of(dataset, number, view) for number in numbers]))


BATCHES = [np.array([3, 0, 7]), np.array([5, 1])]


def test_maps_from_the_trunk_are_those_of_one_of_each_images_views(trainer: Trainer) -> None:
    found = dict(zip((0, 1), trainer.feed.maps(BATCHES, step=4), strict=True))
    drawn = set()
    for place, batch in enumerate(BATCHES):
        numbers, maps = found[place]
        assert numbers.tolist() == batch.tolist()
        for number, one in zip(batch.tolist(), maps, strict=True):
            distances = []
            for view in range(3):
                picture = pictures(trainer, "fit", [number], view)
                with torch.no_grad():
                    network = trainer.prototype_network
                    expected = network.backbone(network.normalise(picture))[0]
                # float16 holds 11 bits; a few layers follow.
                distances.append(((one - expected).norm() / expected.norm()).item())
            assert min(distances) < 5e-3
            drawn.add(int(np.argmin(distances)))
    assert len(drawn) > 1
    again = [maps for _, maps in trainer.feed.maps(BATCHES, step=4)]
    assert all(torch.equal(maps, found[place][1]) for place, maps in enumerate(again))
    other = [maps for _, maps in trainer.feed.maps(BATCHES, step=5)]
    assert any(not torch.equal(maps, found[place][1]) for place, maps in enumerate(other))


@pytest.mark.parametrize("finetune", [{}, {"fresh": True, "train_from": TRAIN_FROM}])
def test_fresh_maps_are_of_views_that_no_other_step_sees(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path, finetune: dict[str, Any]
) -> None:
    trainer = make(small_config(finetune={"epochs": 1, **finetune}), small_data, tmp_path / "run")
    ((_, first),) = trainer.feed.maps(BATCHES[:1], step=1)
    ((_, second),) = trainer.feed.maps(BATCHES[:1], step=2)
    assert not torch.allclose(first, second)
    assert not (tmp_path / "run" / "cache").exists()


def test_gradients_reach_what_learns_and_nothing_before_it(trainer: Trainer) -> None:
    backbone = trainer.prototype_network.backbone
    freeze_all_but(backbone, trainable_parameters(backbone.body, TRAIN_FROM))
    ((_, maps),) = trainer.feed.maps(BATCHES[:1], step=0)
    torch.autograd.backward(maps.square().sum())
    reached = {name for name, parameter in backbone.body.named_parameters() if parameter.grad is not None}
    assert {name for name in reached if name.startswith(("conv1", "stage2.0", "stage2.1"))} == set()
    assert any(name.startswith("stage2.2") for name in reached)


def test_features_of_plain_pictures_are_kept_in_full_precision(trainer: Trainer) -> None:
    numbers = np.array([2, 9, 4])
    for part in PARTS:
        chosen = numbers % len(trainer.feed.datasets[part])
        with torch.no_grad():
            expected = trainer.network.features(pictures(trainer, part, chosen.tolist(), PLAIN))
        torch.testing.assert_close(trainer.feed.batch_features(part, chosen), expected, rtol=1e-5, atol=1e-5)
    trainer.feed.frozen = False
    with torch.no_grad():
        expected = trainer.network.features(pictures(trainer, "fit", numbers.tolist(), PLAIN))
    torch.testing.assert_close(trainer.feed.batch_features("fit", numbers), expected, rtol=1e-5, atol=1e-5)


def test_features_of_an_earlier_backbone_are_removed(trainer: Trainer) -> None:
    numbers = np.arange(4)
    before = trainer.feed.batch_features("fit", numbers)
    with torch.no_grad():
        for parameter in trainer.prototype_network.backbone.parameters():
            parameter.mul_(1.5)
    assert torch.equal(trainer.feed.batch_features("fit", numbers), before)
    trainer.feed.set_backbone(frozen=True, version=1)
    assert not torch.equal(trainer.feed.batch_features("fit", numbers), before)
    assert [file.name for file in sorted((trainer.directory / "cache").glob("fit*.npy"))] == ["fit-1-0.npy"]


def test_each_process_keeps_its_stripe_and_reads_the_others(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config, run = small_config(), tmp_path / "run"
    whole = make(config, small_data, tmp_path / "whole").feed.batch_features("fit", np.arange(8))

    # Nobody waits here for the other: the first finds the second's stripe, kept before.
    class Patient(Processes):
        def wait(self) -> None:
            pass

    count = len(make(config, small_data, run).splits.fit)
    parts = [make(config, small_data, run, processes=Patient(rank, 2, rank, 2)).feed for rank in (1, 0)]
    with pytest.raises(FileNotFoundError):
        parts[0].batch_features("fit", np.arange(8))
    order = np.array([count - 1, 0, count // 2, 3])
    found = parts[1].batch_features("fit", order)
    torch.testing.assert_close(found[1], whole[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[3], whole[3], rtol=1e-5, atol=1e-5)
    files = sorted((run / "cache").rglob("*.npy"))
    assert sum(len(np.load(file, mmap_mode="r")) for file in files) == count


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("learning", [False, True])
def test_features_of_tiles_are_those_of_the_network(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path, fresh: bool, learning: bool
) -> None:
    """From the pictures and through the trunk, frozen and learning."""
    config = small_config(
        model={"tile": 16, "tile_step": 8},
        finetune={"epochs": 1, "train_from": TRAIN_FROM, "fresh": fresh},
        data={"views": 1},
    )
    trainer = make(config, small_data, tmp_path / "run")
    network, numbers = trainer.prototype_network, np.array([4, 1, 5])
    if learning:
        trainer.feed.frozen = False
        ((_, found),) = trainer.feed.maps([numbers], step=0)
        if fresh:
            assert found.shape[2:] == (3, 3)  # of crops that no view has
        else:
            with torch.no_grad():
                expected = network.backbone(network.normalise(pictures(trainer, "fit", numbers.tolist(), PLAIN)))
            assert ((found - expected).norm() / expected.norm()).item() < 5e-3
        maps = torch.cat([*trainer.feed.selection_maps()])
        with torch.no_grad():
            chosen = pictures(trainer, "selection", [*range(len(maps))], PLAIN)
            expected = network.backbone(network.normalise(chosen))
        assert maps.shape[2:] == (3, 3) and ((maps - expected).norm() / expected.norm()).item() < 5e-3
    for part in PARTS:
        found = trainer.feed.batch_features(part, numbers)
        with torch.no_grad():
            expected = network.features(pictures(trainer, part, numbers.tolist(), PLAIN))
        assert found.shape[2:] == (3, 3)
        assert ((found - expected).norm() / expected.norm()).item() < 5e-3


def test_trunks_of_other_tiles_are_not_shared(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    shared, folders = tmp_path / "shared", []
    for tile, step in ((None, None), (16, 16), (16, 8)):
        config = small_config(model={"tile": tile, "tile_step": step}, finetune={"train_from": TRAIN_FROM})
        cache = SharedCache(shared, GIGABYTE)
        trainer = make(config, small_data, tmp_path / f"run-{tile}-{step}", cache=cache)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.network.parameters():
                parameter.copy_(torch.rand(parameter.shape) * 0.1)
        # A view other than the plain one passes through the trunk.
        trainer.feed.batch_features("fit", np.arange(4), view=1)
        folders.append({file.parent.name for file in shared.rglob("trunk*.npy")})
    assert [len(found) for found in folders] == [1, 2, 3]


def shared_folders(trainer: Trainer) -> set[str]:
    numbers = np.arange(4)
    for part in PARTS:
        trainer.feed.batch_features(part, numbers)
    assert trainer.feed.shared is not None
    return {file.parent.name for file in trainer.feed.shared.directory.rglob("*.npy")}


def test_runs_share_features_of_the_same_weights_and_pictures_alone(
    small_data: Path, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Another seed, head or last layer finds what is there; another backbone, smoothing, rule, view or tile does
    not."""
    shared = tmp_path / "shared"
    settings: dict[str, dict[str, Any]] = {"data": {"seed": 0}, "finetune": {"train_from": TRAIN_FROM}}

    def folders(name: str, **changed: dict[str, Any]) -> set[str]:
        config = small_config(
            **{key: {**settings.get(key, {}), **value} for key, value in changed.items()}
            | {key: value for key, value in settings.items() if key not in changed}
        )
        trainer = make(config, small_data, tmp_path / name, cache=SharedCache(shared, GIGABYTE))
        # The weights are random: the same in every run of this test.
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.network.parameters():
                parameter.copy_(torch.rand(parameter.shape) * 0.1)
        trainer.feed.use(trainer.prototype_network)
        return shared_folders(trainer)

    first = folders("first")
    assert len(first) == 2
    assert folders("second", last_layers={"epochs": 1}) == first
    changes: dict[str, dict[str, dict[str, Any]]] = {
        "smoothed": {"model": {"smoothing": 3}},
        "zoomed": {"data": {"zoom": [0.5, 0.6]}},
        "other-views": {"data": {"seed": 1}},
        "tiled": {"model": {"tile": 16}},
        "other-tiles": {"model": {"tile": 8}},
        "overlapping": {"model": {"tile": 16, "tile_step": 8}},
    }
    for name, changed in changes.items():
        assert len(folders(name, **changed)) == len(first) + 2
        first = {file.parent.name for file in shared.rglob("*.npy")}

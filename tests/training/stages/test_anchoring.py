"""Anchored training: prototypes stay the cells that they were cut from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from protoserve.networks.model_file import PrototypeSource, load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import Run
from protoserve.run.records import Metrics
from training.config import Config
from training.data.pictures import fitted
from training.data.splits import read_splits
from training.running import train

# A configuration, its run's folder, and the run's metrics.
Anchored = tuple[Config, Path, Metrics]


def settings(small_config: Callable[..., Config], **sections: Any) -> Config:
    return small_config(anchored={"epochs": 3, "learning_rate": 0.02}, **sections)


@pytest.fixture(scope="module")
def anchored(
    small_config: Callable[..., Config], small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Anchored:
    run = tmp_path_factory.mktemp("anchored") / "run"
    config = settings(small_config, loss={"distillation": 1.0}, last_layers={"epochs": 0})
    metrics = train(
        config, small_data, run, linear=False, resume=False, device="cpu", console=Console(stderr=True, quiet=True)
    )
    assert metrics is not None
    return config, run, metrics


def loaded(run: Path) -> tuple[PrototypeNetwork, list[PrototypeSource]]:
    network, _, sources = load_network(Run(run).model)
    assert isinstance(network, PrototypeNetwork) and sources is not None
    return network, sources


def test_every_prototype_is_the_cell_it_was_cut_from(anchored: Anchored, small_data: Path) -> None:
    config, run, _ = anchored
    network, sources = loaded(run)
    fit = read_splits(config, small_data).fit
    for number, source in enumerate(sources):
        picture = fitted(fit, fit.index(source.image), config.image).array
        with torch.inference_mode():
            latent = network.latent(network.features(torch.from_numpy(picture[None])))
            distance, _ = network.head.nearest_cells(latent)
        vector = latent.flatten(2)[0, :, source.cell]
        torch.testing.assert_close(network.head.prototypes[number], vector, rtol=0, atol=1e-5)
        # What the matrix product loses where the similarity is too flat for a second look.
        assert float(distance[0, number]) < 1e-5
        assert source.distance >= 0


def test_it_learns_and_keeps_the_best_epoch(anchored: Anchored) -> None:
    _, run, metrics = anchored
    record = metrics.anchored
    assert record is not None and metrics.selection is not None
    assert record.after.selection_leaf >= record.before.selection_leaf
    history = (run / "history.csv").read_text().splitlines()
    rows = [line for line in history if ",anchor," in line]
    assert len(rows) == 3
    assert metrics.selection.accuracy["leaf"] == pytest.approx(record.after.selection_leaf, abs=0.2)


def test_single_cells_give_the_latent_vectors_of_whole_maps(anchored: Anchored) -> None:
    _, run, _ = anchored
    network, _ = loaded(run)
    first = network.add_on[1]
    assert isinstance(first, nn.Conv2d)
    features = torch.randn(3, first.in_channels, 2, 4)
    with torch.inference_mode():
        whole = network.latent(features)
        cells = network.latent_of_cells(features.flatten(2)[:, :, 5])
    np.testing.assert_allclose(cells, whole.flatten(2)[:, :, 5], atol=1e-6)

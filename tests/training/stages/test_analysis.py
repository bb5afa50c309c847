"""The training patches nearest to each prototype, and their purity, by brute force over all cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.config import Config
from training.loop.trainer import Trainer
from training.stages.analysis import SHOWN, analyse, fit_patches


@pytest.fixture
def trainer(small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path) -> Trainer:
    return trainer_at(small_config(joint={"epochs": 0}), tmp_path / "run", until="analyse")


def distances_of(trainer: Trainer) -> NDArray[np.float64]:
    """Squared distances [prototypes, fit images, cells] in double precision, from one plain picture at a time."""
    network, fit = trainer.prototype_network, trainer.splits.fit
    prototypes = network.head.vectors().detach().double()
    found = []
    for number in range(len(fit)):
        picture = torch.from_numpy(trainer.feed.views.of(fit, number, 0)[None])
        with torch.inference_mode():
            cells = network.latent(network.features(picture)).flatten(2)[0].double()
        found.append((cells[None] - prototypes[:, :, None]).square().sum(1))
    return torch.stack(found, dim=1).numpy()


def test_patches_are_the_nearest_images_of_all_classes_each_at_its_best_cell(trainer: Trainer) -> None:
    distances = distances_of(trainer)
    found = fit_patches(trainer, 5)
    assert found.image.shape == found.cell.shape == (len(distances), 5)
    for prototype, to_images in enumerate(distances):
        nearest = np.sort(to_images.min(axis=1))[:5]
        np.testing.assert_allclose(found.distance[prototype], nearest, rtol=1e-3, atol=1e-6)
        at = to_images[found.image[prototype], found.cell[prototype]]
        np.testing.assert_allclose(at, nearest, rtol=1e-3, atol=1e-6)


def test_batches_change_no_patch(trainer: Trainer) -> None:
    whole = fit_patches(trainer, 4)
    trainer.config = trainer.config.model_copy(update={"batch": 3})
    pieces = fit_patches(trainer, 4)
    np.testing.assert_array_equal(pieces.image, whole.image)
    np.testing.assert_array_equal(pieces.cell, whole.cell)
    np.testing.assert_allclose(pieces.distance, whole.distance, rtol=1e-4, atol=1e-7)


def test_purity_is_the_share_of_patches_below_the_prototype_s_own_child(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    # Random prototypes, many of which are nearest to cells of other classes.
    trainer = trainer_at(small_config(), tmp_path / "run")
    row = analyse(trainer)
    patches, purity = trainer.state.patches, trainer.state.records.purity
    assert patches is not None and purity is not None
    assert patches.image.shape[1] == SHOWN == purity.nearest
    taxonomy, fit = trainer.splits.fit.taxonomy, trainer.splits.fit
    own = []
    for child, images in zip(trainer.prototype_network.head.grouping.prototype_child, patches.image, strict=True):
        name = taxonomy.names[int(child)]
        leaves = [taxonomy.names[taxonomy.leaves[fit.leaves[image]]] for image in images]
        own.append([leaf == name or leaf.startswith(f"{name}/") for leaf in leaves])
    assert purity.mean == row["purity"] == pytest.approx(np.mean(own))
    assert purity.nearest_is_own == pytest.approx(np.mean([patch[0] for patch in own]))
    assert len({np.mean([patch[place] for patch in own]) for place in range(SHOWN)}) > 1


def test_the_nearest_patch_of_a_projected_prototype_is_its_own_cell(trainer: Trainer) -> None:
    analyse(trainer)
    patches, purity, projection = trainer.state.patches, trainer.state.records.purity, trainer.state.projection
    assert patches is not None and purity is not None and projection is not None
    assert purity.nearest_is_own == 1.0
    assert float(patches.distance[:, 0].max()) < 1e-6
    assert patches.image[:, 0].tolist() == projection.image.tolist()
    assert patches.cell[:, 0].tolist() == projection.cell.tolist()

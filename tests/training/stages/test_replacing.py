"""Prototypes that tell nothing apart are replaced by training cells that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import Config
from training.loop.trainer import Trainer
from training.stages.replacing import replace, selection_effect


@pytest.fixture
def trainer(small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path) -> Trainer:
    return trainer_at(small_config(replace={"enabled": True, "below": 1.0}), tmp_path / "run", until="replace")


def test_weak_prototypes_become_training_cells_and_strong_ones_stay(trainer: Trainer) -> None:
    head = trainer.prototype_network.head
    projection = trainer.state.projection
    assert projection is not None
    with torch.no_grad():
        # So far from all cells that every picture is as dissimilar.
        head.prototypes[1] = 50.0
        trainer.state.projection = projection._replace(vector=head.prototypes.detach().clone())
        head.weight.add_(0.3)
    effect, before, weight = selection_effect(trainer), head.prototypes.clone(), head.weight.clone()
    row = replace(trainer)
    projection, record = trainer.state.projection, trainer.state.records.replacing
    assert projection is not None and record is not None and record.replaced == row["replaced"] >= 1
    changed = (head.prototypes != before).any(1).numpy()
    assert changed[1] and not changed[effect >= 1.0].any()
    assert int(changed.sum()) <= record.replaced
    children = head.grouping.prototype_child.tolist()
    fit = trainer.splits.fit
    for prototype in np.flatnonzero(changed).tolist():
        image, cell = int(projection.image[prototype]), int(projection.cell[prototype])
        latent = trainer.latent(np.array([image]))[0].flatten(1)[:, cell]
        torch.testing.assert_close(head.prototypes[prototype].detach(), latent, atol=1e-5, rtol=0)
        assert fit.taxonomy.leaves_below[children[prototype], fit.leaves[image]]
    trained = head.weight.clone()
    with torch.no_grad():
        head.reset_weight()
    start = head.weight.clone()
    group, slot = head.grouping.prototype_group[changed], head.grouping.prototype_slot[changed]
    assert torch.equal(trained[group, :, slot], start[group, :, slot])
    kept = np.flatnonzero(~changed)
    group, slot = head.grouping.prototype_group[kept], head.grouping.prototype_slot[kept]
    assert torch.equal(trained[group, :, slot], weight[group, :, slot])
    torch.testing.assert_close(projection.vector, head.prototypes.detach().cpu())


def test_nothing_is_replaced_where_every_prototype_tells_enough(trainer: Trainer) -> None:
    trainer.config = trainer.config.model_copy(
        update={"replace": trainer.config.replace.model_copy(update={"below": -1e9})}
    )
    before = trainer.prototype_network.head.prototypes.clone()
    assert replace(trainer)["replaced"] == 0
    assert torch.equal(trainer.prototype_network.head.prototypes, before)

"""Training of the last layers on fixed distances, a convex problem (Chen et al. 2019, eq. 4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.head import PrototypeHead
from protoserve.run.records import BestEpochRecord
from training.config import Config
from training.data.batches import epoch_batches
from training.data.pictures import MIRRORED, PLAIN
from training.loop.epoch import KeepBest, epoch, whole_batches
from training.loop.trainer import Trainer
from training.losses import Answered, LossTables, objective


def last_layers(trainer: Trainer) -> dict[str, float]:
    """Train the last layers for one epoch. After the last epoch, restore the weights with the best accuracy on the
    selection images, which may be those before the first epoch."""
    step, head, records = trainer.step, trainer.prototype_network.head, trainer.state.records
    keep = KeepBest(trainer.state.best, "last layers")
    if step.epoch == 0:
        before = trainer.select_prototypes()
        records.last_layers = BestEpochRecord(before=before, after=before, epoch=0)
        keep.keep({"weight": head.weight})
    optimiser = trainer.optimiser([([head.weight], trainer.config.last_layers.learning_rate)])
    head.weight.requires_grad_(True)
    if "distance" not in trainer.stage_cache:
        trainer.stage_cache["distance"] = fit_distances(trainer)
    distance = trainer.stage_cache["distance"]
    row = last_layer_epoch(trainer, head, distance, trainer.tables, optimiser, trainer.state.step)
    head.weight.requires_grad_(False)
    selected, record = trainer.select_prototypes(), records.last_layers
    assert record is not None
    if keep.offer({"weight": head.weight}, selected, record.after):
        records.last_layers = BestEpochRecord(before=record.before, after=selected, epoch=step.epoch + 1)
    if step.epoch + 1 == step.epochs:
        keep.restore(head)
    return {**row, **selected.model_dump()}


def fit_distances(trainer: Trainer) -> Tensor:
    """[images, P]: the squared distances of the fit images to the prototypes.

    Uses mirrored pictures if there are any: in a plain picture, a prototype would be at distance 0 from the cell that
    it was cut from, a match that does not occur in new pictures.
    """
    count = len(trainer.splits.fit)
    own = np.arange(count)[trainer.processes.stripe(count)]
    view = MIRRORED if from_mirrored(trainer.config) else PLAIN
    head = trainer.prototype_network.head
    return trainer.processes.joined(nearest_cells_of_all(head, trainer.latents(own, view))[0], count).clone()


def from_mirrored(config: Config) -> bool:
    """Whether the last layers learn from mirrored pictures, rather than from plain ones."""
    return config.data.mirror and config.data.views > 1


def nearest_cells_of_all(head: PrototypeHead, latents: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """The squared distance [images, P] of the nearest cell to each prototype, and that cell [images, P], for batches of
    latent maps."""
    distances, cells = [], []
    with torch.inference_mode():
        for latent in latents:
            distance, cell = head.nearest_cells(latent)
            distances.append(distance)
            cells.append(cell)
    return torch.cat(distances), torch.cat(cells)


def last_layer_epoch(
    trainer: Trainer,
    head: PrototypeHead,
    distance: Tensor,
    tables: LossTables,
    optimiser: torch.optim.Optimizer,
    seed: int,
) -> dict[str, float]:
    """Train the last layers of `head` for one epoch on `distance` [fit images, P]; `seed` orders the images."""
    config = trainer.config
    batches = whole_batches(epoch_batches(len(distance), config.batch, (config.seed, seed)))
    inputs = ((batch, distance[torch.from_numpy(batch.numbers).to(distance.device)]) for batch in batches)

    def loss(numbers: NDArray[np.int64], rows: Tensor) -> dict[str, Tensor]:
        output = head.classify(rows, rows.long())
        answered = Answered(head, output, trainer.targets(numbers), tables, config.loss)
        return objective(answered, config.loss, ("cross_entropy", "l1", "l2"))

    row = epoch(trainer, optimiser, inputs, loss, step=trainer.step, cosine=False)
    return {"loss": row["total"], "cross_entropy": row["cross_entropy"]}

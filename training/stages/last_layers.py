"""The last layers alone, on fixed distances: a convex problem (Chen et al. 2019, eq. 4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from protoserve.networks.head import PrototypeHead
from training.config import Config
from training.data.batches import epoch_batches
from training.data.pictures import MIRRORED, PLAIN
from training.loop.optimising import Averages
from training.loop.trainer import Trainer, merit
from training.losses import LossTables, losses, regularisation


def last_layers(trainer: Trainer) -> dict[str, float]:
    """One epoch of the last layers on fixed distances; after the last one, the weights of the epoch that classified
    the selection images best are taken, which may be those before the first."""
    step, head = trainer.step, trainer.prototype_network.head
    if step.epoch == 0:
        before = trainer.select_prototypes()
        trainer.state.facts["last_layers"] = {"before": before, "after": before, "epoch": 0}
        trainer.state.kept["weight"] = head.weight.detach().clone()
    optimiser = trainer.optimiser([([head.weight], trainer.config.last_layers.learning_rate)])
    head.weight.requires_grad_(True)
    if "distance" not in trainer.remembered:
        trainer.remembered["distance"] = fit_distances(trainer)
    distance = trainer.remembered["distance"]
    leaves = torch.from_numpy(trainer.splits.fit.leaves).to(trainer.device)
    row = last_layer_epoch(head, distance, leaves, trainer.tables, optimiser, trainer.config, trainer.state.step)
    head.weight.requires_grad_(False)
    selected, facts = trainer.select_prototypes(), trainer.state.facts["last_layers"]
    if merit(selected) > merit(facts["after"]):
        facts |= {"after": selected, "epoch": step.epoch + 1}
        trainer.state.kept["weight"] = head.weight.detach().clone()
    if step.epoch + 1 == step.epochs:
        with torch.no_grad():
            head.weight.copy_(trainer.state.kept.pop("weight"))
    return {**row, **selected}


def fit_distances(trainer: Trainer) -> Tensor:
    """distance [images, P] for the last layers, on mirrored pictures where there are some: there no prototype meets
    the very cell it was cut from, a match that new pictures never have."""
    count = len(trainer.splits.fit)
    own = np.arange(count)[trainer.processes.stripe(count)]
    mirrored = trainer.config.data.mirror and trainer.config.data.views > 1
    view = MIRRORED if mirrored else PLAIN
    head = trainer.prototype_network.head
    return trainer.processes.joined(similarities_of(head, trainer.latents(own, view))[0], count).clone()


def similarities_of(head: PrototypeHead, latents: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """distance and cell [images, P] of all images; the last layers need nothing else."""
    distances, cells = [], []
    with torch.inference_mode():
        for latent in latents:
            distance, cell = head.nearest_cells(latent)
            distances.append(distance)
            cells.append(cell)
    return torch.cat(distances), torch.cat(cells)


def last_layer_epoch(
    head: PrototypeHead,
    distance: Tensor,
    leaves: Tensor,
    tables: LossTables,
    optimiser: torch.optim.Optimizer,
    config: Config,
    step: int,
) -> dict[str, float]:
    """One epoch of the convex last-layer problem (Chen et al. 2019, eq. 4) on fixed distances [images, P]."""
    averages = Averages({})
    for numbers, _ in epoch_batches(leaves.cpu().numpy(), config, step):
        chosen = torch.from_numpy(numbers).to(distance.device)
        output = head.classify(distance[chosen], distance[chosen].long())
        parts = losses(head, output, leaves[chosen], tables, config.loss)
        l1, l2 = regularisation(head)
        loss = config.loss.cross_entropy * parts.cross_entropy + config.loss.l1 * l1 + config.loss.l2 * l2
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        averages.add({"loss": float(loss.detach()), "cross_entropy": float(parts.cross_entropy.detach())}, len(numbers))
    return averages.means()

"""The stages of a run as a flat list of steps, each of which is a function of the state before it.

Every step seeds its own random numbers from (seed, step), so a run that is resumed after step n gives the same
result as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.networks.head import PrototypeHead
from training.config import Config
from training.features.cache import epoch_order, slices
from training.losses import LossTables, losses, regularisation

Stage = Literal[
    "finetune",
    "reduce",
    "linear",
    "teach",
    "initialise",
    "warm",
    "joint",
    "project",
    "anchor",
    "last layers",
    "count",
    "prune",
    "analyse",
    "calibrate",
    "novelty",
    "finish",
]


class Step(NamedTuple):
    """One step: its stage, and the epoch within it, of how many."""

    stage: Stage
    epoch: int = 0
    epochs: int = 1


def plan(config: Config, linear: bool) -> list[Step]:
    """All steps of a run, in order.

    Prototypes: (plain fine-tuning) → reduction → start from data, teacher → warm → joint, projections in between →
    projection → anchored training → last layers (→ the number of prototypes, or pruning and last layers) → nearest
    patches → temperatures → novelty thresholds. A linear head: (fine-tuning) → the linear layer on the same features →
    its temperature.
    """
    calibrate = [Step("calibrate")] if config.calibration.enabled else []
    novelty = [Step("novelty")] if config.novelty.enabled else []
    steps = [Step("finetune", epoch, config.finetune.epochs) for epoch in range(config.finetune.epochs)]
    if linear:
        epochs = config.linear.epochs
        steps += [Step("linear", epoch, epochs) for epoch in range(epochs)]
        return [*steps, *calibrate, Step("finish")]
    teach = [Step("teach")] if config.loss.distillation > 0 else []
    learns = config.joint.backbone_learning_rate > 0 and config.joint.epochs > 0
    # The teacher needs features that stand still; the start may need one, too.
    steps.append(Step("reduce"))
    if config.start.share < 1:
        steps += [Step("teach"), Step("initialise")]
    else:
        steps += [Step("initialise"), *([] if learns else teach)]
    steps += [Step("warm", epoch, config.warm.epochs) for epoch in range(config.warm.epochs)]
    last = [Step("last layers", epoch, config.last_layers.epochs) for epoch in range(config.last_layers.epochs)]
    for epoch in range(config.joint.epochs):
        steps.append(Step("joint", epoch, config.joint.epochs))
        every = config.joint.project_every
        if every and (epoch + 1) % every == 0 and epoch + 1 < config.joint.epochs:
            steps.append(Step("project"))
            steps += last if config.last_layers.after_each_projection else []
    anchored = [Step("anchor", epoch, config.anchored.epochs) for epoch in range(config.anchored.epochs)]
    steps += [Step("project"), *(teach if learns and anchored else []), *anchored, *last]
    if config.prototypes.auto:
        steps.append(Step("count"))
    elif config.prune.enabled:
        steps += [Step("prune"), *last]
    return [*steps, Step("analyse"), *calibrate, *novelty, Step("finish")]


@dataclass
class Averages:
    """Means of named numbers over the images of an epoch."""

    sums: dict[str, float]
    count: int = 0

    def add(self, values: dict[str, float], count: int) -> None:
        """Count `values`, each a mean over `count` images."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count
        self.count += count

    def means(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / max(1, self.count) for name, total in self.sums.items()}


def set_learning_rate(optimiser: torch.optim.Optimizer, progress: float, cosine: bool) -> None:
    """Cosine decay from each group's own rate to 1 % of it, or a constant; `progress` in [0, 1]."""
    factor = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)) if cosine else 1.0
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor


def adam(groups: list[tuple[list[nn.Parameter], float]], weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Adam over groups of (parameters, learning rate); with `weight_decay`, decoupled from the gradient (Loshchilov and
    Hutter 2019, algorithm 2) and not for vectors: biases, and the scales of norms."""
    found: list[dict[str, Any]] = []
    for parameters, rate in groups:
        vectors = [parameter for parameter in parameters if weight_decay > 0 and parameter.ndim <= 1]
        others = [parameter for parameter in parameters if weight_decay == 0 or parameter.ndim > 1]
        for part, decay in ((others, weight_decay), (vectors, 0.0)):
            if part:
                found.append({"params": part, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(found)


def epoch_batches(leaves: NDArray[np.int64], config: Config, step: int) -> Iterator[tuple[NDArray[np.int64], float]]:
    """The image numbers of every batch of an epoch in random order, with the share of the epoch done before it."""
    order = epoch_order(len(leaves), (config.seed, step))
    for start, numbers in enumerate(slices(order, config.batch)):
        yield numbers, start * config.batch / len(order)


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
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        averages.add({"loss": float(loss.detach()), "cross_entropy": float(parts.cross_entropy.detach())}, len(numbers))
    return averages.means()

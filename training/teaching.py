"""A plain linear classifier on the features that prototypes see, for the prototypes to learn from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.networks.head import HeadOutput
from training.features import epoch_order, slices
from training.lookalikes import parts_of_look_alikes
from training.losses import distillation
from training.pictures import PLAIN
from training.progress import tracked
from training.stages import adam, set_learning_rate
from training.trainer import Trainer

WEIGHT, BIAS, PART = "teacher.weight", "teacher.bias", "teacher.part"
# As for the plain classifier; it takes seconds.
EPOCHS, DROPOUT, LEARNING_RATE = 30, 0.3, 3e-3


def teach(trainer: Trainer) -> dict[str, float]:
    """Train the teacher, or one for each of `loss.distillation_parts`, on the mean features of every view; all epochs
    are one step.

    A teacher is sure of what it has learned from, and then says no more than the labels. With parts, each image is
    taught by a teacher that has seen neither it nor what looks like it (cross-fitting: Dao et al. 2021). Where all
    images of a leaf look alike, every teacher learns from them.
    """
    config, leaves = trainer.config, trainer.splits.fit.leaves
    views = torch.stack([_pooled(trainer, view) for view in range(config.data.views)])
    count = config.loss.distillation_parts
    part = np.zeros(len(leaves), dtype=np.int64)
    if count > 1:
        plain = nn.functional.normalize(views[PLAIN]).cpu().numpy()
        part = parts_of_look_alikes(plain, leaves, count)
    layers = []
    with tracked(trainer.console, "teacher", EPOCHS * count) as advance:
        for number in range(count):
            alone = [leaf for leaf in np.unique(leaves) if len(np.unique(part[leaves == leaf])) == 1]
            learned = np.flatnonzero((part != number) | np.isin(leaves, alone) | (count == 1))
            layers.append(_fitted(trainer, views, learned, advance))
    trainer.state.kept[WEIGHT] = torch.stack([layer.weight.detach() for layer, _ in layers])
    trainer.state.kept[BIAS] = torch.stack([layer.bias.detach() for layer, _ in layers])
    trainer.state.kept[PART] = torch.from_numpy(part).to(trainer.device)
    return {"loss": sum(loss for _, loss in layers) / count}


def _fitted(
    trainer: Trainer, views: Tensor, learned: NDArray[np.int64], advance: Callable[[int], None]
) -> tuple[nn.Linear, float]:
    """A linear layer trained on `views` [views, images, width] of the images `learned`, and its last loss."""
    config, leaves = trainer.config, trainer.splits.fit.leaves
    layer = nn.Linear(views.shape[2], len(trainer.splits.fit.taxonomy.leaves)).to(trainer.device)
    optimiser = adam([([*layer.parameters()], LEARNING_RATE)])
    targets = torch.from_numpy(leaves).to(trainer.device)
    for epoch in range(EPOCHS):
        # Every process trains the same teacher: the order and the views hang on the seed alone.
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        order = learned[epoch_order(len(learned), (config.seed, trainer.state.step, epoch))]
        for start, numbers in enumerate(slices(order, config.batch)):
            set_learning_rate(optimiser, (epoch + start * config.batch / len(order)) / EPOCHS, cosine=True)
            chosen = torch.from_numpy(np.ascontiguousarray(numbers))
            view = torch.randint(len(views), (len(chosen),), generator=generator)
            kept = torch.rand(len(chosen), views.shape[2], generator=generator) >= DROPOUT
            features = views[view, chosen] * kept.to(views) / (1.0 - DROPOUT)
            loss = nn.functional.cross_entropy(layer(features), targets[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        advance(1)
    return layer, float(loss.detach())


def teacher_logits(trainer: Trainer, numbers: NDArray[np.int64], features: Tensor) -> Tensor:
    """[batch, leaves] the logits of each image's teacher for the feature maps [batch, width, rows, columns] of the fit
    images `numbers`."""
    weight, bias, part = (trainer.state.kept[name] for name in (WEIGHT, BIAS, PART))
    own = part[torch.from_numpy(numbers).to(part.device)]
    of_all = torch.einsum("nw,klw->nkl", features.mean((2, 3)), weight) + bias
    return of_all[torch.arange(len(own), device=own.device), own]


def add_distillation(
    trainer: Trainer, terms: dict[str, Tensor], output: HeadOutput, numbers: NDArray[np.int64], features: Tensor
) -> None:
    """Add the term of distillation to the terms of the loss, where it is wanted and there is a teacher."""
    setting = trainer.config.loss
    if setting.distillation > 0 and WEIGHT in trainer.state.kept:
        teacher, targets = teacher_logits(trainer, numbers, features), trainer.targets(numbers)
        term = distillation(
            trainer.prototype_network.head, output, targets, trainer.tables, teacher, setting.distillation_temperature
        )
        terms["distillation"] = term
        terms["total"] = terms["total"] + setting.distillation * term


@torch.inference_mode()
def _pooled(trainer: Trainer, view: int) -> Tensor:
    """[images, width] the mean over the cells of every fit image's features."""
    numbers = np.arange(len(trainer.splits.fit))
    batches = slices(numbers, trainer.config.batch)
    return torch.cat([features.mean((2, 3)) for features in trainer.feed.stills("fit", batches, view)]).clone()

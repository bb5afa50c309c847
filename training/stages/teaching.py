"""A plain linear classifier on the features that prototypes see, for the prototypes to start and to learn from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.networks.head import HeadOutput
from training.data.batches import epoch_order, slices
from training.loop.optimising import adam, set_learning_rate
from training.loop.trainer import Trainer
from training.losses import distillation
from training.progress import tracked

WEIGHT, BIAS = "teacher.weight", "teacher.bias"
# As for the plain classifier; it takes seconds.
EPOCHS, DROPOUT, LEARNING_RATE = 30, 0.3, 3e-3


def teach(trainer: Trainer) -> dict[str, float]:
    """Train the teacher on the mean features of every view; all its epochs are one step."""
    config = trainer.config
    leaves = trainer.splits.fit.leaves
    views = torch.stack([_pooled(trainer, view) for view in range(config.data.views)])
    layer = nn.Linear(views.shape[2], len(trainer.splits.fit.taxonomy.leaves)).to(trainer.device)
    optimiser = adam([([*layer.parameters()], LEARNING_RATE)])
    targets = torch.from_numpy(leaves).to(trainer.device)
    with tracked(trainer.console, "teacher", EPOCHS) as advance:
        for epoch in range(EPOCHS):
            # Every process trains the same teacher: the order and the views hang on the seed alone.
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            order = epoch_order(len(leaves), (config.seed, trainer.state.step, epoch))
            for start, numbers in enumerate(slices(order, config.batch)):
                set_learning_rate(optimiser, (epoch + start * config.batch / len(order)) / EPOCHS, cosine=True)
                chosen = torch.from_numpy(np.ascontiguousarray(numbers))
                view = torch.randint(len(views), (len(chosen),), generator=generator)
                kept = torch.rand(len(chosen), views.shape[2], generator=generator) >= DROPOUT
                features = views[view, chosen] * kept.to(views) / (1.0 - DROPOUT)
                loss = nn.functional.cross_entropy(layer(features), targets[chosen])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            advance(1)
    trainer.state.kept[WEIGHT] = layer.weight.detach().clone()
    trainer.state.kept[BIAS] = layer.bias.detach().clone()
    return {"loss": float(loss.detach())}


def teacher_logits(trainer: Trainer, features: Tensor) -> Tensor:
    """[batch, leaves] the teacher's logits for feature maps [batch, width, rows, columns]."""
    weight, bias = trainer.state.kept[WEIGHT], trainer.state.kept[BIAS]
    return nn.functional.linear(features.mean((2, 3)), weight, bias)


def add_distillation(
    trainer: Trainer, terms: dict[str, Tensor], output: HeadOutput, targets: Tensor, features: Tensor
) -> None:
    """Add the term of distillation to the terms of the loss, where it is wanted and there is a teacher."""
    setting = trainer.config.loss
    if setting.distillation > 0 and WEIGHT in trainer.state.kept:
        teacher = teacher_logits(trainer, features)
        term = distillation(
            trainer.prototype_network.head, output, targets, trainer.tables, teacher, setting.distillation_temperature
        )
        terms["distillation"] = term
        terms["total"] = terms["total"] + setting.distillation * term


@torch.inference_mode()
def telling_cells(trainer: Trainer, numbers: NDArray[np.int64], share: float) -> Tensor:
    """bool [n, rows, columns] the `share` of each fit image's cells that speak most for its leaf in the teacher: by the
    leaf's weights, less the mean over all leaves, on the cell's features (class activation maps, Zhou et al. 2016)."""
    weight = trainer.state.kept[WEIGHT]
    weight = weight - weight.mean(0)
    found = []
    for part in slices(numbers, trainer.config.batch):
        features = trainer.feed.still("fit", part)
        activation = torch.einsum("nwrc,nw->nrc", features, weight[trainer.targets(part)])
        least = activation.flatten(1).quantile(1 - share, dim=1)
        found.append(activation >= least[:, None, None])
    return torch.cat(found)


def forget_teacher(trainer: Trainer) -> None:
    """Go on without a teacher."""
    for name in (WEIGHT, BIAS):
        trainer.state.kept.pop(name, None)


@torch.inference_mode()
def _pooled(trainer: Trainer, view: int) -> Tensor:
    """[images, width] the mean over the cells of every fit image's features."""
    numbers = np.arange(len(trainer.splits.fit))
    batches = slices(numbers, trainer.config.batch)
    return torch.cat([features.mean((2, 3)) for features in trainer.feed.stills("fit", batches, view)]).clone()

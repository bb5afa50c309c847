"""A plain linear classifier on the features that prototypes see, for the prototypes to start and to learn from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.batches import epoch_batches, slices
from training.loop.checkpoints import Teacher
from training.loop.epoch import epoch, whole_batches
from training.loop.optimising import adam
from training.loop.plan import Step
from training.loop.trainer import Trainer
from training.progress import tracked

# As for the plain classifier; it takes seconds.
EPOCHS, DROPOUT, LEARNING_RATE = 30, 0.3, 3e-3


def teach(trainer: Trainer) -> dict[str, float]:
    """Train the teacher on the mean features of every view; all its epochs are one step."""
    config = trainer.config
    leaves = trainer.splits.fit.leaves
    views = torch.stack([_pooled(trainer, view) for view in range(config.data.views)])
    layer = nn.Linear(views.shape[2], len(trainer.splits.fit.taxonomy.leaves)).to(trainer.device)
    optimiser = adam([([*layer.parameters()], LEARNING_RATE)])

    def loss(numbers: NDArray[np.int64], features: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(layer(features), trainer.targets(numbers))}

    row: dict[str, float] = {}
    with tracked(trainer.console, "teacher", EPOCHS) as advance:
        for number in range(EPOCHS):
            seed = (config.seed, trainer.state.step, number)
            batches = whole_batches(epoch_batches(len(leaves), config.batch, seed))
            # Every process trains the same teacher: the order and the views depend on the seed alone.
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
            inputs = ((batch, _varied(views, batch.numbers, generator)) for batch in batches)
            row = epoch(trainer, optimiser, inputs, loss, step=Step("teach", number, EPOCHS), cosine=True)
            advance(1)
    trainer.state.teacher = Teacher(layer.weight.detach().clone(), layer.bias.detach().clone())
    return row


def _varied(views: Tensor, numbers: NDArray[np.int64], generator: torch.Generator) -> Tensor:
    """[batch, width] the images' features, each in a view drawn at random, with dropout; `views` [views, images,
    width]."""
    chosen = torch.from_numpy(np.ascontiguousarray(numbers))
    view = torch.randint(len(views), (len(chosen),), generator=generator)
    kept = torch.rand(len(chosen), views.shape[2], generator=generator) >= DROPOUT
    return views[view, chosen] * kept.to(views) / (1.0 - DROPOUT)


def teacher_logits(trainer: Trainer, features: Tensor) -> Tensor | None:
    """[batch, leaves] the teacher's logits for feature maps [batch, width, rows, columns]; None without a teacher, and
    where nothing learns from it."""
    teacher = trainer.state.teacher
    if trainer.config.loss.distillation == 0 or teacher is None:
        return None
    return nn.functional.linear(features.mean((2, 3)), teacher.weight, teacher.bias)


@torch.inference_mode()
def class_activation_mask(trainer: Trainer, numbers: NDArray[np.int64], share: float) -> Tensor:
    """bool [n, rows, columns] the `share` of each fit image's cells that speak most for its leaf in the teacher: by the
    leaf's weights, less the mean over all leaves, on the cell's features (class activation maps, Zhou et al. 2016)."""
    assert trainer.state.teacher is not None  # the plan teaches first
    weight = trainer.state.teacher.weight
    weight = weight - weight.mean(0)
    found = []
    for part in slices(numbers, trainer.config.batch):
        features = trainer.feed.batch_features("fit", part)
        activation = torch.einsum("nwrc,nw->nrc", features, weight[trainer.targets(part)])
        least = activation.flatten(1).quantile(1 - share, dim=1)
        found.append(activation >= least[:, None, None])
    return torch.cat(found)


@torch.inference_mode()
def _pooled(trainer: Trainer, view: int) -> Tensor:
    """[images, width] the mean over the cells of every fit image's features."""
    numbers = np.arange(len(trainer.splits.fit))
    batches = slices(numbers, trainer.config.batch)
    return torch.cat([features.mean((2, 3)) for features in trainer.feed.features("fit", batches, view)]).clone()

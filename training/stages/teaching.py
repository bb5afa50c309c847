"""The teacher: a linear classifier on mean features, to initialise prototypes, to distil from, and to compare with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.run.records import PlainClassifier
from protoserve.scores import scores
from training.data.batches import epoch_batches, slices
from training.loop.checkpoints import Teacher
from training.loop.epoch import epoch, whole_batches
from training.loop.optimising import adam
from training.loop.plan import Step
from training.loop.trainer import Trainer
from training.losses import leaf_cross_entropy
from training.progress import tracked

# The defaults of the plain classifier. Training takes seconds.
EPOCHS, DROPOUT, LEARNING_RATE = 30, 0.3, 3e-3


def teach(trainer: Trainer) -> dict[str, float]:
    """Train the teacher on the mean features of all views, and record its accuracy on the selection images. All its
    epochs are one step."""
    config = trainer.config
    leaves = trainer.splits.fit.leaves
    views = torch.stack([_pooled(trainer, view) for view in range(config.data.views)])
    layer = nn.Linear(views.shape[2], len(trainer.splits.fit.taxonomy.leaves)).to(trainer.device)
    optimiser = adam([([*layer.parameters()], LEARNING_RATE)])

    def loss(numbers: NDArray[np.int64], features: Tensor) -> dict[str, Tensor]:
        return {"loss": leaf_cross_entropy(layer(features), trainer.targets(numbers), trainer.possible_leaves)}

    row: dict[str, float] = {}
    with tracked(trainer.console, "teacher", EPOCHS) as advance:
        for number in range(EPOCHS):
            seed = (config.seed, trainer.state.step, number)
            batches = whole_batches(epoch_batches(len(leaves), config.batch, seed))
            # Every process trains the same teacher: order and views depend on the seed only.
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
            inputs = ((batch, _varied(views, batch.numbers, generator)) for batch in batches)
            row = epoch(trainer, optimiser, inputs, loss, step=Step("teach", number, EPOCHS), cosine=True)
            advance(1)
    trainer.state.teacher = Teacher(layer.weight.detach().clone(), layer.bias.detach().clone())
    trainer.state.records.plain = _record(trainer, layer)
    return row


def _record(trainer: Trainer, layer: nn.Linear) -> PlainClassifier:
    """The accuracy of a linear layer over the leaves on the selection images; a node's probability is the sum of its
    leaves'."""
    selection = trainer.splits.selection
    below = torch.from_numpy(selection.taxonomy.leaves_below).to(trainer.device).float()

    def log_probability(features: Tensor) -> Tensor:
        leaves: Tensor = layer(features.mean((2, 3))).softmax(1)
        return (leaves @ below.t()).clamp_min(torch.finfo(torch.float32).tiny).log()

    rows = trainer.selection_rows(log_probability).cpu().numpy()
    found = scores(rows, selection.leaves, selection.taxonomy)
    return PlainClassifier(images=found.images, accuracy=found.accuracy)


def _varied(views: Tensor, numbers: NDArray[np.int64], generator: torch.Generator) -> Tensor:
    """[batch, width]: the features of images, each in a random view, with dropout; `views` [views, images, width]."""
    chosen = torch.from_numpy(np.ascontiguousarray(numbers))
    view = torch.randint(len(views), (len(chosen),), generator=generator)
    kept = torch.rand(len(chosen), views.shape[2], generator=generator) >= DROPOUT
    return views[view, chosen] * kept.to(views) / (1.0 - DROPOUT)


def teacher_logits(trainer: Trainer, features: Tensor) -> Tensor | None:
    """[batch, leaves]: the teacher's logits for feature maps [batch, width, rows, columns]; None without a teacher or
    with `loss.distillation` 0."""
    teacher = trainer.state.teacher
    if trainer.config.loss.distillation == 0 or teacher is None:
        return None
    return nn.functional.linear(features.mean((2, 3)), teacher.weight, teacher.bias)


@torch.inference_mode()
def class_activation_mask(trainer: Trainer, numbers: NDArray[np.int64], share: float) -> Tensor:
    """bool [n, rows, columns]: the `share` of each fit image's cells with the highest class activation for its leaf.

    The class activation (Zhou et al. 2016) is the product of the cell's features with the teacher's weights of the
    leaf, less the mean weights over all leaves. Of an image that is labelled only down to an inner node, the mean
    weights of that node's leaves count.
    """
    assert trainer.state.teacher is not None  # the plan teaches first
    weight = trainer.state.teacher.weight
    weight = weight - weight.mean(0)
    if (possible := trainer.possible_leaves) is not None:
        weight = possible.to(weight) @ weight / possible.sum(1, keepdim=True)
    masks = []
    for part in slices(numbers, trainer.config.batch):
        features = trainer.feed.batch_features("fit", part)
        activation = torch.einsum("nwrc,nw->nrc", features, weight[trainer.targets(part)])
        threshold = activation.flatten(1).quantile(1 - share, dim=1)
        masks.append(activation >= threshold[:, None, None])
    return torch.cat(masks)


@torch.inference_mode()
def _pooled(trainer: Trainer, view: int) -> Tensor:
    """[images, width]: the features of every fit image in a view, averaged over its cells."""
    numbers = np.arange(len(trainer.splits.fit))
    batches = slices(numbers, trainer.config.batch)
    return torch.cat([features.mean((2, 3)) for features in trainer.feed.features("fit", batches, view)]).clone()

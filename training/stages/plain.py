"""The stages of plain classification: training a linear head together with the backbone, and on its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.errors import InputError
from training.features.building import freeze_all_but, trainable_modules, trainable_parameters
from training.loop.epoch import epoch, images_in, shared_batches, with_inputs
from training.loop.trainer import Trainer
from training.losses import leaf_cross_entropy


def finetune(trainer: Trainer) -> dict[str, float]:
    """Train the backbone and the linear head for one epoch with the cross-entropy over leaves."""
    step, plain, setting = trainer.step, trainer.plain, trainer.config.finetune
    body = plain.backbone.body
    learning = trainable_parameters(body, setting.train_from)
    optimiser = trainer.optimiser(
        [(learning, setting.backbone_learning_rate), ([*plain.linear.parameters()], setting.learning_rate)],
        setting.weight_decay,
    )
    freeze_all_but(plain.backbone, learning)
    plain.dropout.train()
    for part in trainable_modules(body, setting.train_from):
        part.train(not (isinstance(part, nn.BatchNorm2d) and setting.batch_norm == "fixed"))
    # Skip a last batch that leaves a process fewer than two pictures: batch normalisation needs two.
    least = 2 * trainer.processes.count
    batches = [batch for batch in shared_batches(trainer) if batch.size >= least]
    if not batches:
        raise InputError(
            f"batch: {trainer.config.batch} for {len(trainer.splits.fit)} training images leaves batch normalisation "
            f"fewer than 2 pictures per process; set batch to at least {least}, with as many images"
        )
    maps = trainer.feed.maps((batch.numbers for batch in batches), trainer.state.step)
    pairs = with_inputs(batches, maps)

    def objective(numbers: NDArray[np.int64], maps: Tensor) -> dict[str, Tensor]:
        logits = plain.leaf_logits(plain.from_maps(maps))
        targets = trainer.targets(numbers)
        return {"loss": leaf_cross_entropy(logits, targets, trainer.possible_leaves, setting.label_smoothing)}

    row = epoch(
        trainer,
        optimiser,
        pairs,
        objective,
        step=step,
        cosine=True,
        warm_up=setting.warm_up,
        images=images_in(batches),
    )
    plain.eval()
    trainer.processes.average(plain.backbone.buffers())

    def answer(maps: Tensor) -> Tensor:
        return plain.log_probability(plain.from_maps(maps))

    return {**row, **trainer.selected(map(answer, trainer.feed.selection_maps())).model_dump()}


def linear(trainer: Trainer) -> dict[str, float]:
    """Train the linear head for one epoch on cached features of the frozen backbone."""
    step, plain, config = trainer.step, trainer.plain, trainer.config
    optimiser = trainer.optimiser([([*plain.linear.parameters()], config.linear.learning_rate)])
    plain.dropout.train()
    batches = shared_batches(trainer)
    inputs = trainer.feed.varied((batch.numbers for batch in batches), trainer.state.step)

    def objective(numbers: NDArray[np.int64], features: Tensor) -> dict[str, Tensor]:
        logits = plain.leaf_logits(features)
        return {"loss": leaf_cross_entropy(logits, trainer.targets(numbers), trainer.possible_leaves)}

    row = epoch(trainer, optimiser, with_inputs(batches, inputs), objective, step=step, cosine=True)
    plain.eval()
    return {**row, **trainer.select(plain.log_probability).model_dump()}

"""The stages of plain classification: fine-tuning the backbone with a linear head, and that head alone."""

from __future__ import annotations

from torch import Tensor, nn

from training.features.building import freeze_all_but, trainable_modules, trainable_parameters
from training.loop.optimising import Averages, set_learning_rate
from training.loop.trainer import Trainer
from training.progress import tracked


def finetune(trainer: Trainer) -> dict[str, float]:
    """One epoch of backbone and linear head, cross-entropy over leaves."""
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
        part.train()
    averages = Averages({})
    batches = [*trainer.batches()]
    maps = trainer.feed.maps((batch.numbers for batch in batches), trainer.state.step)
    label = f"fine-tuning, epoch {step.epoch + 1} of {step.epochs}"
    with tracked(trainer.console, label, sum(len(batch.numbers) for batch in batches)) as advance:
        for batch, (numbers, found) in zip(batches, maps, strict=True):
            # A single picture has no batch statistics to learn from.
            if batch.size < 2 * trainer.processes.count:
                continue
            set_learning_rate(optimiser, (step.epoch + batch.done) / step.epochs, cosine=True)
            logits = plain.leaf_logits(plain.from_maps(found))
            loss = nn.functional.cross_entropy(
                logits, trainer.targets(numbers), label_smoothing=setting.label_smoothing
            )
            trainer.minimise(loss, optimiser, batch.weight)
            averages.add({"loss": float(loss.detach())}, batch.own)
            advance(len(numbers))
    plain.eval()
    trainer.processes.average(plain.backbone.buffers())

    def answer(maps: Tensor) -> Tensor:
        return plain.log_probability(plain.from_maps(maps))

    return {**trainer.means(averages), **trainer.selected(map(answer, trainer.feed.selection_maps()))}


def linear(trainer: Trainer) -> dict[str, float]:
    """One epoch of the linear head on cached features of a backbone that stands still."""
    step, plain, config = trainer.step, trainer.plain, trainer.config
    optimiser = trainer.optimiser([([*plain.linear.parameters()], config.linear.learning_rate)])
    plain.dropout.train()
    averages = Averages({})
    batches = [*trainer.batches()]
    features = trainer.feed.varied((batch.numbers for batch in batches), trainer.state.step)
    for batch, (numbers, found) in zip(batches, features, strict=True):
        set_learning_rate(optimiser, (step.epoch + batch.done) / step.epochs, cosine=True)
        loss = nn.functional.cross_entropy(plain.leaf_logits(found), trainer.targets(numbers))
        trainer.minimise(loss, optimiser, batch.weight)
        averages.add({"loss": float(loss.detach())}, batch.own)
    plain.eval()
    return {**trainer.means(averages), **trainer.select(plain.log_probability)}

"""Plain classification: losses and steps against double precision, and which parts of the backbone learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protoserve.errors import InputError
from training.config import Config
from training.data.batches import epoch_batches
from training.loop.trainer import Trainer
from training.stages.plain import finetune, linear

Array = NDArray[np.float64]
# Kept features of the plain pictures alone: every epoch sees the same images.
PLAIN_VIEW: dict[str, Any] = {"views": 1, "hold_out": 0.25}
TRAIN_FROM = "stage2.2"


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def smoothed_cross_entropy(logits: Array, leaves: NDArray[np.int64], smoothing: float) -> Array:
    """Per image: 1 − smoothing of the target is its leaf, the rest is spread over all leaves (Szegedy et al. 2016)."""
    logarithms = log_softmax(logits)
    own = logarithms[np.arange(len(leaves)), leaves]
    return np.asarray(-(1 - smoothing) * own - smoothing * logarithms.mean(axis=1))


def features_of(trainer: Trainer) -> Array:
    """Pooled features [fit images, channels] of the plain pictures."""
    numbers = np.arange(len(trainer.splits.fit))
    pictures = np.stack([trainer.feed.views.of(trainer.splits.fit, number, 0) for number in numbers.tolist()])
    with torch.inference_mode():
        return trainer.plain.features(torch.from_numpy(pictures)).double().numpy()


def logits_of(trainer: Trainer, features: Array) -> Array:
    layer = trainer.plain.linear
    return np.asarray(features @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy())


def changed(trainer: Trainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in trainer.plain.state_dict().items() if not torch.equal(tensor, before[name])}


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.plain.state_dict().items()}


# ---- the linear head alone -------------------------------------------------------------------------------------------


def test_the_linear_head_takes_the_steps_of_adam(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    """One epoch in double precision: Adam (Kingma and Ba 2015, algorithm 1) at the rate of a half cosine."""
    rate, epochs = 0.01, 3
    config = small_config(data=PLAIN_VIEW, linear={"epochs": epochs, "learning_rate": rate})
    trainer = trainer_at(config, tmp_path / "run", linear=True)
    features, leaves, before = features_of(trainer), trainer.splits.fit.leaves, state(trainer)
    weight = np.concatenate([before["linear.weight"].double(), before["linear.bias"].double()[:, None]], axis=1)
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    first, second, losses = np.zeros_like(weight), np.zeros_like(weight), []
    for step, (numbers, done) in enumerate(epoch_batches(len(leaves), config.batch, (config.seed, 0)), start=1):
        logits, target = inputs[numbers] @ weight.T, np.eye(3)[leaves[numbers]]
        losses += smoothed_cross_entropy(logits, leaves[numbers], 0.0).tolist()
        gradient = (np.exp(log_softmax(logits)) - target).T @ inputs[numbers] / len(numbers)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        weight = weight - rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done / epochs)) / 2) * corrected
    row = linear(trainer)
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    np.testing.assert_allclose(trainer.plain.linear.weight.detach(), weight[:, :-1], atol=2e-5)
    np.testing.assert_allclose(trainer.plain.linear.bias.detach(), weight[:, -1], atol=2e-5)
    assert changed(trainer, before) == {"linear.weight", "linear.bias"}


def test_the_linear_head_is_scored_on_the_selection_images(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = trainer_at(small_config(data=PLAIN_VIEW, linear={"epochs": 1}), tmp_path / "run", linear=True)
    row = linear(trainer)
    selection = trainer.splits.selection
    pictures = np.stack([trainer.feed.views.of(selection, number, 0) for number in range(len(selection))])
    with torch.inference_mode():
        features = trainer.plain.features(torch.from_numpy(pictures)).double().numpy()
    right = logits_of(trainer, features).argmax(axis=1) == selection.leaves
    assert row["selection_leaf"] == pytest.approx(right.mean())
    assert not trainer.plain.training


# ---- backbone and linear head ----------------------------------------------------------------------------------------


def tuned(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], run: Path, **setting: Any
) -> Trainer:
    """A trainer before its fine-tuning, which sees plain pictures only."""
    finetuning = {"epochs": 1, "train_from": TRAIN_FROM, "batch_norm": "fixed", **setting}
    return trainer_at(small_config(data=PLAIN_VIEW, batch=7, finetune=finetuning), run)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_smoothed_cross_entropy_over_leaves(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path, smoothing: float
) -> None:
    rates = {"learning_rate": 1e-12, "backbone_learning_rate": 1e-12}
    trainer = tuned(small_config, trainer_at, tmp_path / "run", label_smoothing=smoothing, **rates)
    with torch.no_grad():
        # Far from equal probabilities, so that smoothing shows.
        trainer.plain.linear.weight.mul_(20)
    leaves = trainer.splits.fit.leaves
    expected = smoothed_cross_entropy(logits_of(trainer, features_of(trainer)), leaves, smoothing)
    # The trunk's output is kept as float16.
    assert finetune(trainer)["loss"] == pytest.approx(expected.mean(), rel=1e-3)


@pytest.mark.parametrize("batch_norm", ["fixed", "learned"])
def test_only_what_comes_after_train_from_learns(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path, batch_norm: str
) -> None:
    trainer = tuned(small_config, trainer_at, tmp_path / "run", batch_norm=batch_norm, weight_decay=0.01)
    before = state(trainer)
    finetune(trainer)
    names = changed(trainer, before)
    frozen = {name for name, parameter in trainer.plain.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("backbone.body.conv1.") for name in frozen) and not frozen & names
    blocks = {".".join(name.split(".")[2:4]) for name in names if name.startswith("backbone.")}
    assert "linear.weight" in names and "stage2.2" in blocks
    assert not blocks & {"conv1.0", "conv1.1", "stage2.0", "stage2.1"}
    statistics = {name for name in names if "running" in name}
    assert bool(statistics) == (batch_norm == "learned")
    assert all(".stage2.2." in name or ".stage2.3." in name or ".stage3." in name for name in statistics)
    assert not trainer.plain.training


def test_a_batch_of_one_picture_is_left_out(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    """A single picture has no batch statistics."""
    setting = {"epochs": 1, "train_from": TRAIN_FROM, "learning_rate": 1e-12, "backbone_learning_rate": 1e-12}
    images = len(trainer_at(small_config(data=PLAIN_VIEW), tmp_path / "counted").splits.fit)
    config = small_config(data=PLAIN_VIEW, batch=images - 1, finetune={**setting, "batch_norm": "fixed"})
    trainer = trainer_at(config, tmp_path / "run")
    leaves, features = trainer.splits.fit.leaves, features_of(trainer)
    losses = smoothed_cross_entropy(logits_of(trainer, features), leaves, 0.0)
    (learned, _), (single, _) = epoch_batches(images, images - 1, (config.seed, 0))
    assert len(single) == 1
    loss = finetune(trainer)["loss"]
    assert loss == pytest.approx(losses[learned].mean(), rel=1e-4)
    assert loss != pytest.approx(losses.mean(), rel=2e-4)


def test_fine_tuning_learns_classes_of_colour(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    config = small_config(data=PLAIN_VIEW, finetune={"epochs": 6, "learning_rate": 0.01})
    trainer = trainer_at(config, tmp_path / "run", until="reduce")
    losses = [row["loss"] for row in trainer.state.history]
    assert len(losses) == 6
    # Chance is log 3.
    assert losses[-1] < 0.7 * math.log(3)


def test_a_last_picture_alone_does_not_end_training(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Its map is 1 × 1, from which batch normalisation can learn no statistics."""
    setting = {"epochs": 1, "batch_norm": "learned", "fresh": True}
    images = len(trainer_at(small_config(data=PLAIN_VIEW), tmp_path / "counted").splits.fit)
    given = {"data": PLAIN_VIEW, "finetune": setting, "image": {"height": 8, "width": 8}}
    trainer = trainer_at(small_config(**given, batch=images - 1), tmp_path / "run")
    assert math.isfinite(finetune(trainer)["loss"])
    trainer = trainer_at(small_config(**given, batch=1), tmp_path / "single")
    with pytest.raises(InputError, match=r"batch: 1 for \d+ training images .*; set batch to at least 2"):
        finetune(trainer)

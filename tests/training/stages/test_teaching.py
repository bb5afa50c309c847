"""The teacher learns its classes, and class activation by its weights masks cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import Config
from training.loop.trainer import Trainer
from training.stages.teaching import class_activation_mask, teach, teacher_logits


def test_the_teacher_is_a_linear_classifier_of_mean_features(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = trainer_at(small_config(loss={"distillation": 1.0}), tmp_path / "run", until="teach")
    features = trainer.feed.batch_features("fit", np.arange(len(trainer.splits.fit)))
    assert teacher_logits(trainer, features) is None
    row = teach(trainer)
    logits, teacher = teacher_logits(trainer, features), trainer.state.teacher
    assert logits is not None and teacher is not None
    expected = features.double().mean((2, 3)) @ teacher.weight.double().t() + teacher.bias.double()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    # Chance would be log 3.
    assert row["loss"] < np.log(3)
    leaves = torch.from_numpy(trainer.splits.fit.leaves)
    assert float((logits.argmax(1) == leaves).double().mean()) > 0.5
    # What it gets right of the selection images is kept, to be told beside the prototypes' accuracy.
    plain, selection = trainer.state.records.plain, trainer.splits.selection
    assert plain is not None and plain.images == len(selection)
    guesses = [
        (maps.mean((2, 3)) @ teacher.weight.t() + teacher.bias).argmax(1)
        for maps in trainer.feed.features("selection", [np.arange(len(selection))])
    ]
    assert plain.accuracy["leaf"] == pytest.approx((torch.cat(guesses).numpy() == selection.leaves).mean())


def test_nothing_is_distilled_where_the_term_has_no_weight(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = trainer_at(small_config(start={"share": 0.5}), tmp_path / "run", until="initialise")
    assert trainer.state.teacher is not None
    assert teacher_logits(trainer, trainer.feed.batch_features("fit", np.arange(2))) is None


def test_the_mask_holds_the_cells_of_greatest_class_activation(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    config = small_config(loss={"distillation": 1.0}, start={"share": 0.25})
    trainer = trainer_at(config, tmp_path / "run", until="initialise")
    assert trainer.state.teacher is not None
    weight = trainer.state.teacher.weight
    numbers = np.array([3, 0, 8, 5])
    found = class_activation_mask(trainer, numbers, 0.25)
    features = trainer.feed.batch_features("fit", numbers)
    assert found.shape == features[:, 0].shape
    for place, number in enumerate(numbers.tolist()):
        leaf = trainer.splits.fit.leaves[number]
        # What a cell adds to the leaf's logit, less what it adds to all logits in the mean.
        logits = torch.einsum("wrc,lw->lrc", features[place], weight)
        activation = (logits[leaf] - logits.mean(0)).flatten()
        strongest = activation.argsort(descending=True)[: int(found[place].sum())]
        assert set(found[place].flatten().nonzero()[:, 0].tolist()) == set(strongest.tolist())
        assert int(found[place].sum()) == pytest.approx(0.25 * activation.numel(), abs=1)

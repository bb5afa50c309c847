"""The stage that measures usual similarities: by brute force over the fit images, and without effect on answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.config import Config
from training.loop.trainer import Trainer
from training.stages.centring import centre


@pytest.fixture
def trainer(small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path) -> Trainer:
    return trainer_at(small_config(joint={"epochs": 0}), tmp_path / "run", until="centre")


def similarities_of(trainer: Trainer) -> NDArray[np.float32]:
    network, fit = trainer.prototype_network, trainer.splits.fit
    pictures = np.stack([trainer.feed.views.of(fit, number, 0) for number in range(len(fit))])
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(pictures)).similarity.numpy())


def test_the_usual_similarity_is_the_mean_of_the_means_of_the_competing_children(trainer: Trainer) -> None:
    row = centre(trainer)
    head, fit = trainer.prototype_network.head, trainer.splits.fit
    similarity = similarities_of(trainer)
    for prototype, child in enumerate(head.grouping.prototype_child.tolist()):
        siblings = fit.taxonomy.children_of(int(fit.taxonomy.parent[child]))
        below = [fit.taxonomy.leaves_below[node][fit.leaves] for node in siblings]
        means = [similarity[chosen, prototype].mean() for chosen in below if chosen.any()]
        assert float(head.usual[prototype]) == pytest.approx(float(np.mean(means)), abs=1e-3)
    record = trainer.state.records.separation
    assert record is not None and record.prototypes == len(similarity[0])
    assert row == {"always_on": record.always_on, "telling": record.telling}
    assert 0 <= record.always_on <= record.prototypes - record.telling


def test_no_answer_changes(trainer: Trainer) -> None:
    network = trainer.prototype_network
    picture = torch.from_numpy(trainer.feed.views.of(trainer.splits.fit, 0, 0)[None])
    with torch.inference_mode():
        before = network(picture).log_probability
        centre(trainer)
        explained = network.explain(picture, 3)
    torch.testing.assert_close(explained.log_probability, before, atol=1e-6, rtol=0)

"""Novelty thresholds against a search by hand over the selection images below each parent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protoserve.networks.network import PrototypeNetwork
from protoserve.novelty import SCORES
from protoserve.schema import NoveltyScore
from training.config import Config
from training.loop.answers import answer_features, novelty_table
from training.loop.trainer import Trainer
from training.stages.novelty_thresholds import MARGIN, novelty


def scores_of(trainer: Trainer, score: NoveltyScore) -> dict[str, list[float]]:
    """The scores of the selection images below each parent, one picture at a time."""
    network, selection = trainer.network, trainer.splits.selection
    assert isinstance(network, PrototypeNetwork)
    table = novelty_table(network)
    found: dict[str, list[float]] = {}
    for number, leaf in enumerate(selection.leaves.tolist()):
        picture = torch.from_numpy(trainer.feed.views.of(selection, number, 0)[None])
        with torch.inference_mode():
            scores = answer_features(network, network.features(picture), table).novelty[score][0]
        name = selection.taxonomy.names[selection.taxonomy.leaves[leaf]]
        for group, score_of_group in zip(table.groups, scores.tolist(), strict=True):
            parent = "" if group.parent < 0 else selection.taxonomy.names[group.parent]
            if not parent or name.startswith(f"{parent}/"):
                found.setdefault(parent, []).append(score_of_group)
    return found


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_the_share_asked_for_reaches_the_threshold_and_no_more_than_it_must(
    small_config: Callable[..., Config],
    trainer_at: Callable[..., Trainer],
    tmp_path: Path,
    score: NoveltyScore,
    rate: float,
) -> None:
    config = small_config(novelty={"score": score, "true_positive_rate": rate}, data={"hold_out": 0.5})
    trainer = trainer_at(config, tmp_path / "run")
    row = novelty(trainer)
    record = trainer.state.records.novelty
    assert record is not None and (record.score, record.true_positive_rate) == (score, rate)
    scores = scores_of(trainer, score)
    assert row == {"thresholds": 2.0} and set(record.thresholds) == set(scores) == {"", "A"}
    for parent, threshold in record.thresholds.items():
        descending = sorted(scores[parent], reverse=True)
        # The fewest images that make up the share.
        fewest = next(count for count in range(1, len(descending) + 1) if count / len(descending) >= rate)
        least = descending[fewest - 1]
        assert threshold == pytest.approx(least - MARGIN * max(1.0, abs(least)), abs=1e-5 * max(1.0, abs(least)))
        assert threshold < least


def test_a_parent_without_selection_images_has_no_threshold(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    """A leaf with one image keeps it, so that there is none of A to select on."""
    generator = np.random.default_rng(0)
    for leaf, count in (("A/x", 1), ("A/y", 1), ("B", 6)):
        (tmp_path / "data" / "train" / leaf).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "train" / leaf / f"{number}.png")
    trainer = trainer_at(small_config(), tmp_path / "run", data=tmp_path / "data")
    assert novelty(trainer) == {"thresholds": 1.0}
    record = trainer.state.records.novelty
    assert record is not None and set(record.thresholds) == {""}

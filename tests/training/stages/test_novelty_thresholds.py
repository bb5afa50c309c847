"""Novelty thresholds against a search by hand over the selection images below each parent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protoserve.networks.network import PrototypeNetwork
from protoserve.novelty import MARGIN, SCORES
from protoserve.schema import NoveltyScore
from training.config import Config
from training.loop.answers import answer_features, novelty_table
from training.loop.trainer import Trainer
from training.stages.novelty_thresholds import few_images, novelty


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
@pytest.mark.parametrize("rate", [0.5, 0.75])
def test_the_next_known_picture_reaches_the_threshold_with_the_share_asked_for(
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
    assert row == {"thresholds": 2.0, "pooled": 0.0} and set(record.thresholds) == set(scores) == {"", "A"}
    assert record.images == {parent: len(found) for parent, found in scores.items()} and record.pooled == []
    for parent, threshold in record.thresholds.items():
        ascending = sorted(scores[parent])
        # With one more picture of rank 1 to n + 1, each alike likely, at most this many ranks lie below the threshold.
        below = max(count for count in range(len(ascending)) if count / (len(ascending) + 1) <= 1 - rate + 1e-12)
        least = ascending[below - 1]
        assert threshold == pytest.approx(least - MARGIN * max(1.0, abs(least)), abs=1e-5 * max(1.0, abs(least)))
        assert threshold < least


def test_parents_with_few_images_share_a_threshold_and_are_named(
    small_config: Callable[..., Config], trainer_at: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Below the root lie 15 selection images and below A 10, but 19 are needed; together they have 25."""
    config = small_config(novelty={"score": "energy", "true_positive_rate": 0.95}, data={"hold_out": 0.5})
    trainer = trainer_at(config, tmp_path / "run")
    assert novelty(trainer) == {"thresholds": 2.0, "pooled": 2.0}
    record = trainer.state.records.novelty
    assert record is not None and record.images == {"": 15, "A": 10} and record.pooled == ["", "A"]
    scores = scores_of(trainer, "energy")
    lowest = min(min(found) for found in scores.values())
    for threshold in record.thresholds.values():
        assert threshold == pytest.approx(lowest - MARGIN * max(1.0, abs(lowest)), abs=1e-4)
    [line] = few_images(record)
    assert "0.95 of the known pictures below the root (15), A (10); these parents share a threshold" in line


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
    assert novelty(trainer) == {"thresholds": 0.0, "pooled": 1.0}
    record = trainer.state.records.novelty
    assert record is not None and record.thresholds == {}
    first, second = few_images(record)
    assert "get none, and know every picture" in first and "no selection image below A" in second

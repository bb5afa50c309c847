"""Novelty thresholds, fitted on the selection images."""

from __future__ import annotations

import torch

from protoserve.novelty import parent_names, threshold
from protoserve.run.records import NoveltyThresholds
from training.loop.answers import answer_features, images_below, novelty_table
from training.loop.trainer import Trainer

# Relative to the threshold, or to 1 if that is larger.
MARGIN = 1e-4


@torch.inference_mode()
def novelty(trainer: Trainer) -> dict[str, float]:
    """Set the threshold of every parent so that the configured share of the selection images below it reach it.

    A parent without selection images gets no threshold.
    """
    setting, selection, network = trainer.config.novelty, trainer.splits.selection, trainer.network
    table = novelty_table(network)
    scores = trainer.selection_rows(
        lambda features: torch.from_numpy(answer_features(network, features, table).novelty[setting.score])
    ).numpy()
    below = images_below(table, selection.leaves, selection.taxonomy)
    thresholds = {
        parent: _with_margin(threshold(scores[below[:, group], group], setting.true_positive_rate))
        for group, parent in enumerate(parent_names(table.groups, selection.taxonomy))
        if below[:, group].any()
    }
    trainer.state.records.novelty = NoveltyThresholds(
        score=setting.score, true_positive_rate=setting.true_positive_rate, thresholds=thresholds
    )
    return {"thresholds": len(thresholds)}


def _with_margin(threshold: float) -> float:
    """A slightly lower threshold, so that an image at exactly the threshold stays known in other batches and runtimes,
    whose scores differ in the last digits."""
    return threshold - MARGIN * max(1.0, abs(threshold))

"""Novelty: thresholds from the selection images, and how well the scores tell unknown classes from known ones."""

from __future__ import annotations

import torch

from protoserve.novelty import parent_names, threshold
from protoserve.run.records import NoveltyThresholds
from training.loop.answers import answer_features, images_below, novelty_table
from training.loop.trainer import Trainer

# Of a threshold, or of 1 where that is greater.
MARGIN = 1e-4


@torch.inference_mode()
def novelty(trainer: Trainer) -> dict[str, float]:
    """The stage: per parent, the threshold that the configured share of the selection images below it reach.

    A parent without such images gets none. What the thresholds do to the selection images is kept for the metrics.
    """
    setting, selection, network = trainer.config.novelty, trainer.splits.selection, trainer.network
    table = novelty_table(network)
    found = trainer.selection_rows(
        lambda features: torch.from_numpy(answer_features(network, features, table).novelty[setting.score])
    )
    scores = found.numpy()
    below = images_below(table, selection.leaves, selection.taxonomy)
    thresholds = {
        parent: _a_little_below(threshold(scores[below[:, group], group], setting.true_positive_rate))
        for group, parent in enumerate(parent_names(table.groups, selection.taxonomy))
        if below[:, group].any()
    }
    trainer.state.records.novelty = NoveltyThresholds(
        score=setting.score, true_positive_rate=setting.true_positive_rate, thresholds=thresholds
    )
    return {"thresholds": len(thresholds)}


def _a_little_below(least: float) -> float:
    """For the image that stands on the threshold: other batches and other runtimes give its score to a few digits."""
    return least - MARGIN * max(1.0, abs(least))

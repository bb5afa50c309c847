"""Novelty thresholds, fitted on the selection images."""

from __future__ import annotations

import numpy as np
import torch

from protoserve.novelty import fit_thresholds, parent_names, with_margin
from protoserve.run.records import NoveltyThresholds
from training.loop.answers import answer_features, images_below, novelty_table
from training.loop.trainer import Trainer


@torch.inference_mode()
def novelty(trainer: Trainer) -> dict[str, float]:
    """Set the threshold of every parent so that a known picture below it reaches it with the configured probability.

    Warns of parents with too few selection images for that. A parent without any, or without enough in the pool, gets
    no threshold. See `protoserve.novelty.fit_thresholds`.
    """
    setting, selection, network = trainer.config.novelty, trainer.splits.selection, trainer.network
    table = novelty_table(network)
    scores = trainer.selection_rows(
        lambda features: torch.from_numpy(answer_features(network, features, table).novelty[setting.score])
    ).numpy()
    below = images_below(table, selection.leaves, selection.taxonomy)
    fitted = fit_thresholds(scores, below, setting.true_positive_rate)
    names = parent_names(table.groups, selection.taxonomy)
    images = dict(zip(names, fitted.images.tolist(), strict=True))
    record = NoveltyThresholds(
        score=setting.score,
        true_positive_rate=setting.true_positive_rate,
        thresholds={
            names[group]: with_margin(float(fitted.minimum[group]))
            for group in np.flatnonzero(fitted.minimum > -np.inf)
        },
        images=images,
        pooled=[names[group] for group in np.flatnonzero(fitted.pooled)],
    )
    trainer.state.records.novelty = record
    for line in few_images(record):
        trainer.console.print(line, markup=False, soft_wrap=True)
    return {"thresholds": len(record.thresholds), "pooled": len(record.pooled)}


def few_images(record: NoveltyThresholds) -> list[str]:
    """Say below which parents too few selection images were found for thresholds of their own."""
    rate, lines = f"{record.true_positive_rate:g}", []
    pooled = [f"{parent or 'the root'} ({record.images[parent]})" for parent in record.pooled]
    if pooled:
        kept = "share a threshold" if record.pooled[0] in record.thresholds else "get none, and know every picture"
        lines.append(
            f"warning: too few selection images to accept {rate} of the known pictures below {', '.join(pooled)}; "
            f"these parents {kept}; add pictures to val, or raise data.hold_out"
        )
    if none := [parent or "the root" for parent, images in record.images.items() if not images]:
        lines.append(f"warning: no selection image below {', '.join(none)}, so every picture is known there")
    return lines

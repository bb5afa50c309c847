"""Centring: measure each prototype's usual similarity, against which its evidence is told.

A softmax does not see what is added to all siblings. So a prototype that every picture is similar to may carry the
largest contributions and decide nothing. Told as more than usual, it contributes nothing, and no probability changes:
see `protoserve.networks.head.PrototypeHead.centred_weight`.
"""

from __future__ import annotations

import numpy as np
import torch

from protoserve.run.records import SeparationRecord
from protoserve.similarity_statistics import SimilarityStatistics, SimilaritySums
from training.data.batches import slices
from training.loop.answers import novelty_table
from training.loop.trainer import Trainer
from training.progress import tracked


@torch.inference_mode()
def centre(trainer: Trainer) -> dict[str, float]:
    """The stage: measure the similarities of all fit images, each in its plain view, and set the head's `usual`."""
    head, fit, batch = trainer.explained_network.head, trainer.splits.fit, trainer.config.batch
    sums = SimilaritySums(fit.taxonomy, novelty_table(trainer.network))
    everything = np.arange(len(fit))
    with tracked(trainer.console, "usual similarities", len(fit)) as advance:
        for numbers, latent in zip(slices(everything, batch), trainer.latents(everything), strict=True):
            sums.add(head(latent).similarity.cpu().numpy(), fit.leaves[numbers])
            advance(len(numbers))
    record = set_usual(trainer, sums.statistics())
    return {"always_on": record.always_on, "telling": record.telling}


@torch.inference_mode()
def set_usual(trainer: Trainer, found: SimilarityStatistics) -> SeparationRecord:
    """Set the head's `usual` and the records to the statistics of all fit images."""
    trainer.explained_network.head.usual.copy_(torch.from_numpy(np.nan_to_num(found.usual)))
    trainer.state.separation, record = found, found.record()
    trainer.state.records.separation = record
    return record

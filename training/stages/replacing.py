"""Replacement of prototypes that tell nothing apart, after the last projection.

A prototype whose similarities to its own class's selection images hardly exceed those to the siblings' is replaced by a
cell of the class's training images that does tell them apart. Not in the papers, which prune by the classes of the
nearest patches: background that all classes share passes that rule when its nearest patches happen to be its own.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.run.records import ReplacingRecord
from protoserve.similarity_statistics import SimilaritySums
from training.loop.answers import novelty_table
from training.loop.trainer import Trainer
from training.progress import tracked
from training.prototypes.projection import Projection
from training.prototypes.telling import telling_cells


@torch.inference_mode()
def replace(trainer: Trainer) -> dict[str, float]:
    """The stage: replace the prototypes whose effect on the selection images is below `replace.below`, where a training
    cell has a larger one. The weights of replaced prototypes start anew, as published."""
    setting, head, fit = trainer.config.replace, trainer.prototype_network.head, trainer.splits.fit
    projection = trainer.state.projection
    assert projection is not None
    before, effect = trainer.select_prototypes(), selection_effect(trainer)
    children, replaced = head.grouping.prototype_child.cpu().numpy(), 0
    weak = {int(child): np.flatnonzero((children == child) & (effect < setting.below)) for child in np.unique(children)}
    image, cell, distance, vector = (part.clone() for part in projection)
    with tracked(trainer.console, "telling cells", len(weak)) as advance:
        for child, prototypes in weak.items():
            if len(prototypes):
                found = telling_cells(
                    head,
                    trainer.latents,
                    fit.leaves,
                    child,
                    number=len(prototypes),
                    candidates=setting.candidates,
                    correlation=setting.correlation,
                    seed=trainer.config.seed,
                )
                # The weakest prototype goes first, for the best cell.
                order = prototypes[np.argsort(effect[prototypes], kind="stable")][: len(found.cell)]
                better = found.effect > effect[order]
                chosen = torch.from_numpy(order[better])
                image[chosen] = torch.from_numpy(found.image[better])
                cell[chosen], distance[chosen] = torch.from_numpy(found.cell[better]), 0.0
                vector[chosen] = found.vector[torch.from_numpy(better).to(found.vector.device)].float().cpu()
                replaced += len(chosen)
                _restart(trainer, chosen)
            advance(1)
    head.prototypes.copy_(vector.to(trainer.device))
    trainer.state.projection = Projection(image, cell, distance, vector)
    after = trainer.select_prototypes()
    trainer.state.records.replacing = ReplacingRecord(replaced=replaced, before=before, after=after)
    return {"replaced": replaced, "before": before.selection_leaf, **after.model_dump()}


def selection_effect(trainer: Trainer) -> NDArray[np.float64]:
    """Return by how many standard deviations each prototype tells its class from the siblings, float64 [P], on the
    selection images; 0 where these hold no image of the class or of its siblings."""
    network, selection = trainer.prototype_network, trainer.splits.selection
    similarity = trainer.selection_rows(lambda features: network.head(network.latent(features)).similarity)
    sums = SimilaritySums(selection.taxonomy, novelty_table(network))
    sums.add(similarity.cpu().numpy(), selection.leaves)
    return sums.statistics().effect


def _restart(trainer: Trainer, prototypes: torch.Tensor) -> None:
    """Set the last-layer weights of these prototypes to their published start."""
    head = trainer.prototype_network.head
    trained = head.weight.clone()
    head.reset_weight()
    start = head.weight.clone()
    group, slot = head.grouping.prototype_group[prototypes], head.grouping.prototype_slot[prototypes]
    trained[group, :, slot] = start[group, :, slot]
    head.weight.copy_(trained)

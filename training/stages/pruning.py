"""Pruning by the rule of Chen et al. 2019, supplement, section 3.

If the nearest training patches of a prototype mostly belong to other classes, it represents something that classes
share, such as background, and is removed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.networks.head import PrototypeHead
from protoserve.run.records import PrototypeNumbers, PruningRecord
from training.loop.trainer import Trainer
from training.prototypes.nearest_patches import own_patches
from training.prototypes.projection import Projection
from training.prototypes.thinning import class_sizes, pure_prototypes, smaller_head
from training.stages.analysis import fit_patches


def prune(trainer: Trainer) -> dict[str, float]:
    """Remove the impure prototypes. The next steps train the last layers further."""
    setting = trainer.config.prune
    head, fit = trainer.prototype_network.head, trainer.splits.fit
    before = trainer.select_prototypes()
    own = own_patches(head, fit_patches(trainer, setting.nearest), fit.leaves)
    kept = pure_prototypes(
        own.sum(axis=1), head.grouping.prototype_child.cpu().numpy(), class_sizes(head, fit.leaves), setting.at_least
    )
    replace_head(trainer, smaller_head(head, kept), kept)
    after = trainer.select_prototypes()
    numbers = PrototypeNumbers(before=len(own), after=len(kept))
    trainer.state.records.prune = PruningRecord(prototypes=numbers, before=before, after=after)
    return {
        "prototypes": len(kept),
        "removed": len(own) - len(kept),
        "before": before.selection_leaf,
        **after.model_dump(),
    }


def replace_head(trainer: Trainer, head: PrototypeHead, kept: NDArray[np.int64]) -> None:
    """Replace the head by `head`, which holds the prototypes `kept` of the present one, in the network, its description
    and the projection."""
    network, projection = trainer.prototype_network, trainer.state.projection
    network.head = head
    description = trainer.description.model_copy(update={"prototype_child": head.grouping.prototype_child.tolist()})
    trainer.replace_network(description, network)
    if projection is not None:
        chosen = torch.from_numpy(kept)
        trainer.state.projection = Projection(*(part[chosen] for part in projection))

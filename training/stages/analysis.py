"""Global analysis (Chen et al. 2019, section 2.3): the training patches nearest to each prototype."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from protoserve.run.records import PurityRecord
from training.data.batches import slices
from training.loop.trainer import Trainer
from training.progress import tracked
from training.prototypes.nearest_patches import NearestPatches, nearest_patches, own_patches

# Patches per prototype in a run's analysis, as in the figures of the paper.
SHOWN = 10


def analyse(trainer: Trainer) -> dict[str, float]:
    """Find the patches that `analysis.json` and the report show, and store them in the state and their purity in the
    records."""
    head, fit = trainer.explained_network.head, trainer.splits.fit
    patches = fit_patches(trainer, SHOWN)
    trainer.state.patches = patches
    own = own_patches(head, patches, fit.leaves)
    purity = PurityRecord(nearest=own.shape[1], mean=float(own.mean()), nearest_is_own=float(own[:, 0].mean()))
    trainer.state.records.purity = purity
    return {"purity": purity.mean}


def fit_patches(trainer: Trainer, nearest: int) -> NearestPatches:
    """The `nearest` patches of each prototype among the plain views of the fit images that are labelled down to a leaf:
    of others, nobody knows whether they are of the prototype's class."""
    batch = trainer.config.batch
    everything = np.flatnonzero(trainer.splits.fit.to_leaf)
    with tracked(trainer.console, "nearest training patches", len(everything)) as advance:

        def latents() -> Iterator[tuple[NDArray[np.int64], Tensor]]:
            for numbers, latent in zip(slices(everything, batch), trainer.latents(everything), strict=True):
                yield numbers, latent
                advance(len(numbers))

        return nearest_patches(trainer.explained_network.head, latents(), nearest)

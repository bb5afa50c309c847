"""Global analysis (Chen et al. 2019, section 2.3): the training patches nearest to each prototype.

The search streams over the images and keeps `nearest` candidates per prototype, so its memory does not grow with the
data set, and neither batches nor their order change the result. It looks at all images, whatever their class: what a
prototype stands for shows in whose patches gather around it.
"""

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

# Patches of each prototype that a run keeps, as in the paper's figures of global analysis.
SHOWN = 10


def analyse(trainer: Trainer) -> dict[str, float]:
    """The stage: find the patches that `analysis.json` and the report show, and keep them until the run is finished."""
    head, fit = trainer.explained_network.head, trainer.splits.fit
    found = fit_patches(trainer, SHOWN)
    trainer.state.patches = found
    own = own_patches(head, found, fit.leaves)
    purity = PurityRecord(nearest=own.shape[1], mean=float(own.mean()), nearest_is_own=float(own[:, 0].mean()))
    trainer.state.records.purity = purity
    return {"purity": purity.mean}


def fit_patches(trainer: Trainer, nearest: int) -> NearestPatches:
    """The nearest patches of a run's prototypes among its fit images, each in its plain view."""
    fit, batch = trainer.splits.fit, trainer.config.batch
    with tracked(trainer.console, "nearest training patches", len(fit)) as advance:

        def latents() -> Iterator[tuple[NDArray[np.int64], Tensor]]:
            everything = np.arange(len(fit))
            for numbers, latent in zip(slices(everything, batch), trainer.latents(everything), strict=True):
                yield numbers, latent
                advance(len(numbers))

        return nearest_patches(trainer.explained_network.head, latents(), nearest)

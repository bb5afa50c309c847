"""Keep a run's similarities, so that its last layers can be changed later (see `protoserve.run.similarities`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.run.similarities import MOST_BYTES, KeptImages, KeptSimilarities, kept_bytes, write_similarities
from training.loop.trainer import Trainer
from training.stages.last_layers import fit_distances, from_mirrored


def keep_similarities(trainer: Trainer) -> None:
    """Write the similarities of the fit and selection images into the run's folder.

    Says so instead if they would take more than `MOST_BYTES`.
    """
    splits, console = trainer.splits, trainer.console
    size = kept_bytes(len(splits.fit), len(splits.selection), len(trainer.prototype_network.head.prototypes))
    if size > MOST_BYTES:
        console.print(
            f"note: keeps no similarities, which would take {size / 1e9:.1f} GB; changing the last layers later takes "
            "the data set",
            soft_wrap=True,
        )
        return
    write_similarities(measured_similarities(trainer), trainer.directory)


@torch.inference_mode()
def measured_similarities(trainer: Trainer) -> KeptSimilarities:
    """Compute the similarities of the fit images that are labelled down to a leaf, in the view that last layers learn
    from, and of the selection images."""
    head, splits = trainer.prototype_network.head, trainer.splits
    fit = head.similarity.of_distance(fit_distances(trainer), head.reference)
    selection = trainer.selection_rows(lambda features: head(trainer.prototype_network.latent(features)).similarity)
    rows = np.flatnonzero(splits.fit.to_leaf)
    learned = kept_images(splits.fit.subset(rows), fit[torch.from_numpy(rows).to(fit.device)])
    return KeptSimilarities(learned, kept_images(splits.selection, selection), from_mirrored(trainer.config))


def kept_images(dataset: Dataset, similarity: Tensor) -> KeptImages:
    """Name the rows of `similarity` [images, P] after the images of a data set."""
    rows: NDArray[np.float32] = similarity.float().cpu().numpy()
    return KeptImages(dataset.images, dataset.leaves, rows)

"""The stages of the prototype autoencoder (Li et al. 2018): initialisation, training, assignment to leaves."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoserve.networks.autoencoder import PrototypeAutoencoder
from training.data.batches import epoch_batches
from training.data.elastic import deform
from training.loop.epoch import epoch, images_in, whole_batches
from training.loop.trainer import Trainer
from training.prototypes.codes import assigned_to_leaves, codes_of
from training.stages.autoencoder_losses import autoencoder_objective


def start_codes(trainer: Trainer) -> dict[str, float]:
    """Set every prototype to the code of a training picture."""
    _start_from_pictures(trainer.autoencoder, trainer.memory.fit, trainer.splits.fit.leaves, trainer.config.seed)
    return {}


def train_autoencoder(trainer: Trainer) -> dict[str, float]:
    """Train one epoch on the fit pictures, each with a new deformation."""
    step, network, config, setting = trainer.step, trainer.autoencoder, trainer.config, trainer.config.autoencoder
    elastic, pictures = setting.elastic, trainer.memory.fit
    optimiser = trainer.optimiser([([*network.parameters()], setting.learning_rate)])
    generator = torch.Generator(trainer.device).manual_seed(config.seed * 1_000_003 + step.epoch)

    def planes_of(numbers: NDArray[np.int64]) -> Tensor:
        planes: Tensor = network.planes(pictures[torch.from_numpy(numbers).to(trainer.device)])
        if elastic.alpha == 0:
            return planes
        return deform(planes, sigma=elastic.sigma, alpha=elastic.alpha, generator=generator)

    def loss(numbers: NDArray[np.int64], planes: Tensor) -> dict[str, Tensor]:
        result = network.reconstruct(planes)
        # A single group holds all leaves, in the order of the taxonomy.
        logits, targets = result.output.group_logits[:, 0], trainer.targets(numbers)
        return autoencoder_objective(logits, targets, result.output.distance, planes, result.drawn, setting)

    batches = whole_batches(epoch_batches(len(pictures), config.batch, (config.seed, step.epoch)))
    inputs = ((batch, planes_of(batch.numbers)) for batch in batches)
    network.train()
    row = epoch(trainer, optimiser, inputs, loss, step=step, cosine=True, images=images_in(batches))
    network.eval()
    return {**row, **trainer.select_prototypes().model_dump()}


def assign(trainer: Trainer) -> dict[str, float]:
    """Assign each prototype to the leaf for which it has the largest weight."""
    codes = codes_of(trainer.autoencoder, trainer.memory.fit)
    trainer.replace_network(*assigned_to_leaves(trainer.description, trainer.autoencoder, codes))
    return {}


@torch.no_grad()
def _start_from_pictures(network: PrototypeAutoencoder, pictures: Tensor, leaves: NDArray[np.int64], seed: int) -> None:
    """Set every prototype to the code of a random picture of its initial leaf.

    `pictures` uint8 [images, H, W, 3], their `leaves` int64 [images]. The published random prototypes start far from
    every code, and classification does not improve until they are near.
    """
    head = network.head
    generator = np.random.default_rng((seed, 0))
    for number, node in enumerate(head.grouping.prototype_child.tolist()):
        image = int(generator.choice(np.flatnonzero(leaves == int(head.grouping.node_member[node]))))
        head.prototypes[number] = codes_of(network, pictures[image : image + 1])[0]

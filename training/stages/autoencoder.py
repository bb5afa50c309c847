"""The stages of the prototype autoencoder (Li et al. 2018): start, training, and the assignment to leaves."""

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
from training.prototypes.codes import (
    assigned_to_leaves,
    codes_of,
)
from training.stages.autoencoder_losses import autoencoder_objective


def start_codes(trainer: Trainer) -> dict[str, float]:
    """Start every prototype as the code of a picture."""
    _start_from_pictures(trainer.autoencoder, trainer.memory.fit, trainer.splits.fit.leaves, trainer.config.seed)
    return {}


def train_autoencoder(trainer: Trainer) -> dict[str, float]:
    """One epoch over the fit pictures, each deformed anew."""
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
        found = network.reconstruct(planes)
        # One group holds all leaves, in the order of the taxonomy.
        logits, targets = found.output.group_logits[:, 0], trainer.targets(numbers)
        return autoencoder_objective(logits, targets, found.output.distance, planes, found.drawn, setting)

    batches = whole_batches(epoch_batches(len(pictures), config.batch, (config.seed, step.epoch)))
    inputs = ((batch, planes_of(batch.numbers)) for batch in batches)
    network.train()
    row = epoch(trainer, optimiser, inputs, loss, step=step, cosine=True, images=images_in(batches))
    network.eval()
    return {**row, **trainer.select_prototypes().model_dump()}


def assign(trainer: Trainer) -> dict[str, float]:
    """Assign each prototype to the leaf that it speaks for most."""
    codes = codes_of(trainer.autoencoder, trainer.memory.fit)
    trainer.replace_network(*assigned_to_leaves(trainer.description, trainer.autoencoder, codes))
    return {}


@torch.no_grad()
def _start_from_pictures(network: PrototypeAutoencoder, pictures: Tensor, leaves: NDArray[np.int64], seed: int) -> None:
    """Make every prototype the code of a random picture of the leaf that it starts with.

    `pictures` uint8 [images, H, W, 3] with their `leaves` int64 [images]. Random prototypes, as published, start far
    from every code, and classification waits until they come near.
    """
    head = network.head
    generator = np.random.default_rng((seed, 0))
    for number, node in enumerate(head.grouping.prototype_child.tolist()):
        drawn = int(generator.choice(np.flatnonzero(leaves == int(head.grouping.node_member[node]))))
        head.prototypes[number] = codes_of(network, pictures[drawn : drawn + 1])[0]

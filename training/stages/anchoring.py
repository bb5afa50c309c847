"""Training after the last projection that moves no prototype off its picture.

A projection takes every prototype from where the losses had put it to the nearest training cell, and the accuracy that
this costs is what the last layers can't win back. Here the add-on layers learn on as well, and each prototype goes with
them: it stays the latent vector of the very cell it was cut from, so nothing is left to project.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from protoserve.networks.head import HeadOutput
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.records import BestEpochRecord
from training.data.batches import slices
from training.features.building import freeze_all_but
from training.loop.epoch import KeepBest, epoch, images_in, shared_batches, with_inputs
from training.loop.trainer import Trainer
from training.losses import Answered, objective
from training.prototypes.projection import Projection
from training.stages.teaching import teacher_logits

LEARNING = ("add_on.", "head.prototypes", "head.weight")


def anchor(trainer: Trainer) -> dict[str, float]:
    """One epoch of add-on and last layers; after the last one, those of the epoch that classified the selection images
    best are taken, which may be those before the first.

    Only varied views are learned from where there are some: in the plain one a prototype meets its own cell at distance
    0, a match that new pictures never have.
    """
    step, network, config, state = trainer.step, trainer.prototype_network, trainer.config, trainer.state
    head, setting = network.head, config.anchored
    assert state.projection is not None
    keep = KeepBest(state.best, "anchored")
    if step.epoch == 0:
        before = trainer.select_prototypes()
        state.records.anchored = BestEpochRecord(before=before, after=before, epoch=0)
        keep.keep(_learning(network))
    if "anchors" not in trainer.remembered:
        trainer.remembered["anchors"] = cells_of(trainer, state.projection, latent=False)
    anchors = trainer.remembered["anchors"]
    freeze_all_but(network.backbone, [])
    optimiser = trainer.optimiser(
        [([*network.add_on.parameters()], setting.learning_rate), ([head.weight], setting.last_layers_learning_rate)]
    )
    head.prototypes.requires_grad_(False)
    head.weight.requires_grad_(True)
    network.add_on.train()
    head.train()
    batches = shared_batches(trainer)
    given = trainer.feed.varied((batch.numbers for batch in batches), state.step, plain=config.data.views == 1)

    def loss(numbers: NDArray[np.int64], features: Tensor) -> dict[str, Tensor]:
        vectors = network.latent_of_cells(anchors)
        output: HeadOutput = functional_call(head, {"prototypes": vectors}, (network.latent(features),))
        teacher = teacher_logits(trainer, features)
        answered = Answered(head, output, trainer.targets(numbers), trainer.tables, config.loss, teacher_logits=teacher)
        return objective(answered, config.loss)

    row = epoch(
        trainer, optimiser, with_inputs(batches, given), loss, step=step, cosine=True, images=images_in(batches)
    )
    network.eval()
    head.prototypes.requires_grad_(True)
    head.weight.requires_grad_(False)
    _set_prototypes(trainer, state.projection)
    selected, record = trainer.select_prototypes(), state.records.anchored
    assert record is not None
    if keep.offer(_learning(network), selected, record.after):
        state.records.anchored = BestEpochRecord(before=record.before, after=selected, epoch=step.epoch + 1)
    if step.epoch + 1 == step.epochs:
        keep.restore(network)
        state.projection = state.projection._replace(vector=head.prototypes.detach().cpu().clone())
    return {**row, **selected.model_dump()}


@torch.no_grad()
def cells_of(trainer: Trainer, projection: Projection, *, latent: bool) -> Tensor:
    """The cell that each prototype was cut from, computed as for any picture: its features [P, width], or its `latent`
    vector [P, D]."""
    network, batch = trainer.prototype_network, trainer.config.batch
    found = []
    places = np.arange(len(projection.image))
    images = projection.image.cpu().numpy()
    for part, features in zip(slices(places, batch), trainer.feed.features("fit", slices(images, batch)), strict=True):
        maps = network.latent(features) if latent else features
        cell = projection.cell[torch.from_numpy(part)].to(maps.device)
        found.append(maps.flatten(2)[torch.arange(len(part), device=maps.device), :, cell])
    return torch.cat(found)


def _set_prototypes(trainer: Trainer, projection: Projection) -> None:
    """Give every prototype the latent vector of its cell."""
    head = trainer.prototype_network.head
    with torch.no_grad():
        head.prototypes.copy_(cells_of(trainer, projection, latent=True))
        head.centre.copy_(head.vectors().mean(0))


def _learning(network: PrototypeNetwork) -> dict[str, Tensor]:
    """What learns here, by name."""
    names = (*LEARNING, "head.centre")
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(names)}

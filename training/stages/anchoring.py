"""Training after the last projection that keeps every prototype at its training cell.

A projection moves every prototype from the place that the loss found for it to the nearest training cell. This costs
accuracy, and the last layers alone can't recover all of it. This stage also trains the add-on layers. Each prototype
follows them: it stays the latent vector of the cell that it was cut from, so it needs no further projection.
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
    """Train the add-on layers and last layers for one epoch. After the last epoch, restore the weights with the best
    accuracy on the selection images, which may be those before the first epoch.

    Does not train on plain views if there are others: in its plain source image a prototype is at distance 0 from its
    own cell, a match that does not occur in new pictures.
    """
    step, network, config, state = trainer.step, trainer.prototype_network, trainer.config, trainer.state
    head, setting = network.head, config.anchored
    assert state.projection is not None
    keep = KeepBest(state.best, "anchored")
    if step.epoch == 0:
        before = trainer.select_prototypes()
        state.records.anchored = BestEpochRecord(before=before, after=before, epoch=0)
        keep.keep(_learning(network))
    if "anchors" not in trainer.stage_cache:
        trainer.stage_cache["anchors"] = cells_of(trainer, state.projection, latent=False)
    anchors = trainer.stage_cache["anchors"]
    freeze_all_but(network.backbone, [])
    optimiser = trainer.optimiser(
        [([*network.add_on.parameters()], setting.learning_rate), ([head.weight], setting.last_layers_learning_rate)]
    )
    head.prototypes.requires_grad_(False)
    head.weight.requires_grad_(True)
    network.add_on.train()
    head.train()
    batches = shared_batches(trainer)
    inputs = trainer.feed.varied((batch.numbers for batch in batches), state.step, plain=config.data.views == 1)

    def loss(numbers: NDArray[np.int64], features: Tensor) -> dict[str, Tensor]:
        vectors = network.latent_of_cells(anchors)
        output: HeadOutput = functional_call(head, {"prototypes": vectors}, (network.latent(features),))
        teacher = teacher_logits(trainer, features)
        answered = Answered(head, output, trainer.targets(numbers), trainer.tables, config.loss, teacher_logits=teacher)
        return objective(answered, config.loss)

    row = epoch(
        trainer, optimiser, with_inputs(batches, inputs), loss, step=step, cosine=True, images=images_in(batches)
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
    """The cell that each prototype was cut from, computed by the current network: its features [P, width], or its
    `latent` vector [P, D]."""
    network, batch = trainer.prototype_network, trainer.config.batch
    cells = []
    prototypes, images = np.arange(len(projection.image)), projection.image.cpu().numpy()
    features_of_images = trainer.feed.features("fit", slices(images, batch))
    for part, features in zip(slices(prototypes, batch), features_of_images, strict=True):
        maps = network.latent(features) if latent else features
        cell = projection.cell[torch.from_numpy(part)].to(maps.device)
        cells.append(maps.flatten(2)[torch.arange(len(part), device=maps.device), :, cell])
    return torch.cat(cells)


def _set_prototypes(trainer: Trainer, projection: Projection) -> None:
    """Set every prototype to the latent vector of its cell."""
    head = trainer.prototype_network.head
    with torch.no_grad():
        head.prototypes.copy_(cells_of(trainer, projection, latent=True))
        head.centre.copy_(head.vectors().mean(0))


def _learning(network: PrototypeNetwork) -> dict[str, Tensor]:
    """The weights that this stage changes, by name."""
    names = (*LEARNING, "head.centre")
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(names)}

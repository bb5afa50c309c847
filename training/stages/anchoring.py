"""Training after the last projection that moves no prototype off its picture.

A projection takes every prototype from where the losses had put it to the nearest training cell, and the accuracy that
this costs is what the last layers can't win back. Here the add-on layers learn on as well, and each prototype goes with
them: it stays the latent vector of the very cell it was cut from, so nothing is left to project.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from protoserve.networks.head import HeadOutput
from training.data.batches import slices
from training.features.building import freeze_all_but
from training.loop.optimising import Averages, set_learning_rate
from training.loop.trainer import Trainer, merit
from training.losses import losses
from training.progress import tracked
from training.prototypes.projection import Projection
from training.stages.teaching import add_distillation

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
    if step.epoch == 0:
        before = trainer.select_prototypes()
        state.facts["anchored"] = {"before": before, "after": before, "epoch": 0}
        _keep(trainer)
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
    averages = Averages({})
    batches = trainer.batches()
    images = sum(len(batch.numbers) for batch in batches)
    given = trainer.feed.varied((batch.numbers for batch in batches), state.step, plain=config.data.views == 1)
    with tracked(trainer.console, f"anchored, epoch {step.epoch + 1} of {step.epochs}", images) as advance:
        for batch, (numbers, features) in zip(batches, given, strict=True):
            set_learning_rate(optimiser, (step.epoch + batch.done) / step.epochs, cosine=True)
            vectors = network.latent_of_cells(anchors)
            output: HeadOutput = functional_call(head, {"prototypes": vectors}, (network.latent(features),))
            targets = trainer.targets(numbers)
            terms = losses(head, output, targets, trainer.tables, config.loss).asked_for(config.loss)
            add_distillation(trainer, terms, output, targets, features)
            trainer.minimise(terms["total"], optimiser, batch.weight)
            values = torch.stack([term.detach() for term in terms.values()]).tolist()
            averages.add(dict(zip(terms, values, strict=True)), batch.own)
            advance(len(numbers))
    network.eval()
    head.prototypes.requires_grad_(True)
    head.weight.requires_grad_(False)
    _place(trainer, state.projection)
    selected, facts = trainer.select_prototypes(), state.facts["anchored"]
    if merit(selected) > merit(facts["after"]):
        facts |= {"after": selected, "epoch": step.epoch + 1}
        _keep(trainer)
    if step.epoch + 1 == step.epochs:
        kept = [name for name in state.kept if name.startswith("anchored.")]
        network.load_state_dict({name.removeprefix("anchored."): state.kept.pop(name) for name in kept}, strict=False)
        state.projection = state.projection._replace(vector=head.prototypes.detach().cpu().clone())
    return {**trainer.means(averages), **selected}


@torch.no_grad()
def cells_of(trainer: Trainer, projection: Projection, *, latent: bool) -> Tensor:
    """The cell that each prototype was cut from, computed as for any picture: its features [P, width], or its `latent`
    vector [P, D]."""
    network, batch = trainer.prototype_network, trainer.config.batch
    found = []
    places = np.arange(len(projection.image))
    images = projection.image.cpu().numpy()
    for part, features in zip(slices(places, batch), trainer.feed.stills("fit", slices(images, batch)), strict=True):
        maps = network.latent(features) if latent else features
        cell = projection.cell[torch.from_numpy(part)].to(maps.device)
        found.append(maps.flatten(2)[torch.arange(len(part), device=maps.device), :, cell])
    return torch.cat(found)


def _place(trainer: Trainer, projection: Projection) -> None:
    """Give every prototype the latent vector of its cell."""
    head = trainer.prototype_network.head
    with torch.no_grad():
        head.prototypes.copy_(cells_of(trainer, projection, latent=True))
        head.centre.copy_(head.vectors().mean(0))


def _keep(trainer: Trainer) -> None:
    """Remember what learns here, as it is now."""
    for name, tensor in trainer.prototype_network.state_dict().items():
        if name.startswith(LEARNING) or name == "head.centre":
            trainer.state.kept[f"anchored.{name}"] = tensor.detach().clone()

"""The stages of a prototype network up to projection: reduction, initialisation, training, projection."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from protoserve.run.records import JointRecord, ProjectionRecord, SelectionAccuracy
from training.data.batches import epoch_order, slices
from training.data.pictures import PLAIN
from training.features.building import freeze_all_but, trainable_parameters
from training.features.frozen import BackboneMaps, frozen_forward
from training.loop.epoch import KeepBest, epoch, images_in, shared_batches, with_inputs
from training.loop.trainer import Trainer
from training.losses import Answered, objective
from training.progress import tracked
from training.prototypes.projection import complete, nearest_of_all, search
from training.prototypes.reduction import fit_reduction
from training.prototypes.starting import start_from_data
from training.stages.noise import noise_features
from training.stages.teaching import class_activation_mask, teacher_logits

# These have tens of thousands of cells; more hardly change the principal components.
REDUCTION_IMAGES = 600


def reduce(trainer: Trainer) -> dict[str, float]:
    """Set the reduction to the principal components of the training cells."""
    numbers = epoch_order(len(trainer.splits.fit), (trainer.config.data_seed, 0))[:REDUCTION_IMAGES]
    with tracked(trainer.console, "principal components", len(numbers)) as advance:
        pictures = trainer.feed.pictures("fit", np.sort(numbers), PLAIN)
        network, engine = trainer.prototype_network, trainer.config.features
        maps = frozen_forward(BackboneMaps(network), len(numbers), engine, trainer.device, trainer.console)
        fit_reduction(network, pictures, trainer.device, advance, maps)
    return {}


def initialise(trainer: Trainer) -> dict[str, float]:
    """Set the prototypes of each class to cluster centres of its training cells."""
    head, config = trainer.prototype_network.head, trainer.config
    leaves = set(head.taxonomy.leaves)

    def mask(child: int, numbers: NDArray[np.int64]) -> Tensor | None:
        if config.start.share == 1 or child in leaves:
            return None
        return class_activation_mask(trainer, numbers, config.start.share)

    with tracked(trainer.console, "prototypes from data", len(head.grouping.prototype_child)) as advance:
        start_from_data(head, trainer.latent, trainer.splits.fit.leaves, config.seed, mask, advance)
    # The teacher no longer fits the features once the backbone learns.
    if config.loss.distillation == 0 or config.joint.backbone_learning_rate > 0:
        trainer.state.teacher = None
    with torch.no_grad():
        head.centre.copy_(head.vectors().mean(0))
    return trainer.select_prototypes().model_dump()


def warm(trainer: Trainer) -> dict[str, float]:
    """Train the add-on layers and prototypes for one epoch."""
    return _train(trainer, trainer.config.warm.learning_rate, 0.0, cosine=False)


def joint(trainer: Trainer) -> dict[str, float]:
    """Train the add-on layers, the prototypes and, if it has a learning rate, the backbone for one epoch."""
    setting = trainer.config.joint
    row = _train(trainer, setting.learning_rate, setting.backbone_learning_rate, cosine=True)
    if setting.patience is not None:
        _stop_early(trainer, row, setting.patience)
    return row


def _stop_early(trainer: Trainer, row: dict[str, float], patience: int) -> None:
    """Keep the weights of the epoch with the best accuracy on the selection images. After `patience` epochs without a
    better one, or after the last epoch, restore them and end the stage."""
    step, state, network = trainer.step, trainer.state, trainer.prototype_network
    # A frozen backbone and reduction are the same in every epoch.
    fixed = () if trainer.config.joint.backbone_learning_rate > 0 else ("backbone.", "reduction.")
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(fixed)}
    selected = SelectionAccuracy(selection_leaf=row["selection_leaf"], selection_level_1=row["selection_level_1"])
    keep, record = KeepBest(state.best, "joint"), state.records.joint
    if step.epoch == 0 or record is None:
        keep.keep(weights)
        best, epoch_of_best = selected, 1
    elif keep.offer(weights, selected, record.best):
        best, epoch_of_best = selected, step.epoch + 1
    else:
        best, epoch_of_best = record.best, record.epoch
    state.records.joint = JointRecord(best=best, epoch=epoch_of_best, epochs=step.epoch + 1)
    if step.epoch + 1 == step.epochs or step.epoch + 1 - epoch_of_best >= patience:
        keep.restore(network)
        trainer.end_stage()


def _train(trainer: Trainer, rate: float, backbone_rate: float, *, cosine: bool) -> dict[str, float]:
    step, network, config = trainer.step, trainer.prototype_network, trainer.config
    groups = [([*network.add_on.parameters(), network.head.prototypes], rate)]
    learning: list[tuple[list[nn.Parameter], float]] = []
    if backbone_rate > 0:
        body, train_from = network.backbone.body, config.finetune.train_from
        learning = [(trainable_parameters(body, train_from), backbone_rate)]
        if network.reduction is not None:
            groups.append(([*network.reduction.parameters()], backbone_rate))
    freeze_all_but(network.backbone, [parameter for group, _ in learning for parameter in group])
    optimiser = trainer.optimiser([*groups, *learning], config.joint.weight_decay if backbone_rate > 0 else 0.0)
    network.head.weight.requires_grad_(False)
    network.add_on.train()
    network.head.train()
    noise = noise_features(trainer, learning=backbone_rate > 0) if config.loss.noise > 0 else None
    batches = shared_batches(trainer)
    inputs = trainer.feed.varied((batch.numbers for batch in batches), trainer.state.step, learning=backbone_rate > 0)

    def loss(numbers: NDArray[np.int64], features: Tensor) -> dict[str, Tensor]:
        answered = Answered(
            network.head,
            network.head(network.latent(features)),
            trainer.targets(numbers),
            trainer.tables,
            config.loss,
            teacher_logits=teacher_logits(trainer, features),
            noise=None if noise is None else network.head(network.latent(noise(numbers))),
        )
        return objective(answered, config.loss)

    row = epoch(
        trainer, optimiser, with_inputs(batches, inputs), loss, step=step, cosine=cosine, images=images_in(batches)
    )
    network.eval()
    return {**row, **trainer.select_prototypes().model_dump()}


def project(trainer: Trainer) -> dict[str, float]:
    """Replace every prototype by the nearest cell of the training images of its class (see
    `training.prototypes.projection`)."""
    head, fit, batch = trainer.prototype_network.head, trainer.splits.fit, trainer.config.batch
    before = trainer.select_prototypes()
    own = np.arange(len(fit))[trainer.processes.stripe(len(fit))]
    with tracked(trainer.console, "projection", len(own)) as advance:

        def latents() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for part, latent in zip(slices(own, batch), trainer.latents(own), strict=True):
                yield torch.from_numpy(part), torch.from_numpy(fit.leaves[part]), latent
                advance(len(part))

        projection = complete(head, nearest_of_all(trainer.processes, search(head, latents())))
    with torch.no_grad():
        head.prototypes.copy_(projection.vector.to(trainer.device))
    trainer.state.projection = projection
    after = trainer.select_prototypes()
    trainer.state.records.projection = ProjectionRecord(before=before, after=after)
    children, images, cells = head.grouping.prototype_child, projection.image, projection.cell
    return {
        "mean_distance": float(projection.distance.mean()),
        "distinct": len(set(zip(children.tolist(), images.tolist(), cells.tolist(), strict=True))),
        "before": before.selection_leaf,
        **after.model_dump(),
    }

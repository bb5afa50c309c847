"""The stages of a run as a flat list of steps.

Each step is a function of the state before it, and seeds its random numbers from (seed, step). A run that is resumed
after step n therefore gives the same result as one that was never interrupted.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from training.config import Config

Stage = Literal[
    "start codes",
    "autoencoder",
    "assign",
    "finetune",
    "reduce",
    "linear",
    "teach",
    "initialise",
    "warm",
    "joint",
    "project",
    "anchor",
    "last layers",
    "count",
    "prune",
    "replace",
    "analyse",
    "centre",
    "calibrate",
    "novelty",
    "finish",
]


class Step(NamedTuple):
    """One step: an `epoch`, counted from 0, of the `epochs` of a `stage`."""

    stage: Stage
    epoch: int = 0
    epochs: int = 1


def plan(config: Config, linear: bool) -> list[Step]:
    """All steps of a run, in order.

    - Prototypes: (fine-tuning) → reduction → initialisation, teacher → warm → joint, with projections in between →
      projection → anchored training → last layers (→ number of prototypes, or pruning and last layers) → nearest
      patches → temperatures → novelty thresholds.
    - Linear head: (fine-tuning) → the linear layer on fixed features → its temperature.
    - Autoencoder: initialisation from pictures → training → assignment to leaves → nearest pictures → temperatures →
      novelty thresholds.
    """
    calibrate = [Step("calibrate")] if config.calibration.enabled else []
    novelty = [Step("novelty")] if config.novelty.enabled else []
    if config.model.kind == "autoencoder":
        epochs = config.autoencoder.epochs
        steps = [Step("start codes"), *(Step("autoencoder", epoch, epochs) for epoch in range(epochs)), Step("assign")]
        return [*steps, Step("analyse"), Step("centre"), *calibrate, *novelty, Step("finish")]
    steps = [Step("finetune", epoch, config.finetune.epochs) for epoch in range(config.finetune.epochs)]
    if linear:
        epochs = config.linear.epochs
        steps += [Step("linear", epoch, epochs) for epoch in range(epochs)]
        return [*steps, *calibrate, Step("finish")]
    teach = [Step("teach")] if config.loss.distillation > 0 else []
    learns = config.joint.backbone_learning_rate > 0 and config.joint.epochs > 0
    # The teacher needs a frozen backbone. Initialisation may need a teacher, too.
    steps.append(Step("reduce"))
    if config.start.share < 1:
        steps += [Step("teach"), Step("initialise")]
    else:
        steps += [Step("initialise"), *([] if learns else teach)]
    steps += [Step("warm", epoch, config.warm.epochs) for epoch in range(config.warm.epochs)]
    last = [Step("last layers", epoch, config.last_layers.epochs) for epoch in range(config.last_layers.epochs)]
    for epoch in range(config.joint.epochs):
        steps.append(Step("joint", epoch, config.joint.epochs))
        every = config.joint.project_every
        if every and (epoch + 1) % every == 0 and epoch + 1 < config.joint.epochs:
            steps.append(Step("project"))
            steps += last if config.last_layers.after_each_projection else []
    anchored = [Step("anchor", epoch, config.anchored.epochs) for epoch in range(config.anchored.epochs)]
    replace = [Step("replace")] if config.replace.enabled else []
    steps += [Step("project"), *replace, *(teach if learns and anchored else []), *anchored, *last]
    if config.prototypes.auto:
        steps.append(Step("count"))
    elif config.prune.enabled:
        steps += [Step("prune"), *last]
    return [*steps, Step("analyse"), Step("centre"), *calibrate, *novelty, Step("finish")]

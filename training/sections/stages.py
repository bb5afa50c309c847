"""How each stage of a run learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from protoserve.schema import NoveltyScore
from training.sections.section import Section


class StartConfig(Section):
    """Where prototypes start: at cluster centres of their own class's training cells."""

    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of every picture's cells that prototypes of inner nodes start from: the cells that speak "
        "most for its leaf by a plain linear classifier (class activation, Zhou et al. 2016). 1 takes all cells.",
    )


class FinetuneConfig(Section):
    """Plain classification first: the backbone learns with a linear head (AdamW)."""

    epochs: int = Field(default=0, ge=0, description="Epochs. 0 keeps the backbone as it is.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate of the linear head.")
    backbone_learning_rate: float = Field(default=3e-4, gt=0, description="Learning rate of the backbone.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay; spares biases and norms.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    batch_norm: Literal["learned", "fixed"] = Field(
        default="learned",
        description="Whether batch normalisation learns statistics or keeps those of `model.weights`. Set fixed where "
        "a process has few images per batch, or so that several processes learn as one would: each normalises its own "
        "images.",
    )
    train_from: str | None = Field(
        default=None,
        description="First part of the backbone that learns, here and in `joint`, such as `features.14`. null trains "
        "all of it. The output of the parts before it is computed once for `data.views` views of every image and kept "
        "on disk as float16.",
    )
    fresh: bool = Field(
        default=False,
        description="Whether every epoch sees new random crops instead of the kept views, as without `train_from`. "
        "Needs no disk, but every epoch computes the whole backbone.",
    )


class LinearConfig(Section):
    """The plain classifier: that of `--head linear`, and the teacher of `loss.distillation`."""

    epochs: int = Field(default=30, ge=0, description="Epochs. 0 keeps what fine-tuning has trained.")
    learning_rate: float = Field(
        default=3e-3, gt=0, description="Learning rate; depends on the scale of the backbone's features."
    )


class WarmConfig(Section):
    """Add-on layers and prototypes learn; the last layers do not."""

    epochs: int = Field(default=1, ge=0, description="Epochs. Published: 1 (Hase et al.), 5 (Chen et al.).")
    learning_rate: float = Field(default=3e-3, gt=0, description="Learning rate, constant; 3e-3 is published.")


class JointConfig(Section):
    """Add-on layers and prototypes learn, and the backbone from `finetune.train_from` on where it has a rate; its batch
    normalisation keeps its statistics. The rate falls along a cosine to 1 % of itself."""

    epochs: int = Field(default=30, ge=0, description="Epochs.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Learning rate of add-on layers and prototypes.")
    backbone_learning_rate: float = Field(
        default=0.0,
        ge=0,
        description="Learning rate of the backbone and of the reduction. 0 freezes them, so that features are computed "
        "once.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Weight decay where the backbone learns; spares biases and norms."
    )
    project_every: int = Field(default=5, ge=0, description="Epochs between projections. 0 projects at the end alone.")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stops once this many epochs have not classified the selection images better, and takes the "
        "weights of the best epoch. null runs all epochs; set it where training time matters more than comparability.",
    )


class AnchoredConfig(Section):
    """Add-on layers and last layers learn after the last projection, while every prototype stays the cell that it was
    cut from (see training/stages/anchoring). The epoch that classifies the selection images best is kept, which may be
    the state before the first. Not published."""

    epochs: int = Field(default=0, ge=0, description="Epochs. 0 is as published.")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Learning rate of the add-on layers; lower it where the first epoch is best."
    )
    last_layers_learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate of the last layers.")


class LastLayersConfig(Section):
    """The last layers learn alone. The epoch that classifies the selection images best is kept, which may be the state
    before the first."""

    epochs: int = Field(default=10, ge=0, description="Epochs after the last projection. Chen et al. publish 20.")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Learning rate, also of the refits of `prune` and `prototypes.auto`."
    )
    after_each_projection: bool = Field(
        default=False,
        description="Whether the last layers learn after each projection, as published, instead of the last alone. "
        "Multiplies their time by the number of projections.",
    )


class PruneConfig(Section):
    """Removal of prototypes whose nearest training patches are of other classes, after the last projection; the last
    layers then learn once more (Chen et al. 2019)."""

    enabled: bool = Field(
        default=False, description="Whether to prune, as published. `prototypes.auto` prunes without it."
    )
    nearest: int = Field(default=6, ge=1, description="Training patches that are looked at. Published: 6.")
    at_least: int = Field(
        default=3,
        ge=1,
        description="Patches that must be of the prototype's own class. Published: 3, with about 30 images a class; "
        "lower it for smaller classes.",
    )

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> PruneConfig:
        if self.at_least > self.nearest:
            raise ValueError(f"at_least is {self.at_least} of {self.nearest} nearest patches; lower at_least")
        return self


class PrototypesConfig(Section):
    """How many prototypes a run ends with. `auto` starts with many; after the last projection it merges
    near-duplicates, prunes by `prune.nearest` and `prune.at_least`, and then removes the prototypes that contribute
    least, round by round. The smallest number within `tolerance` of the best accuracy on the selection images wins."""

    auto: bool = Field(default=False, description="Whether the run chooses the number itself (`--prototypes auto`).")
    start: int = Field(
        default=16,
        ge=1,
        description="Prototypes of every leaf that `auto` starts with, instead of "
        "`model.prototypes_per_child`. Time and memory of training grow with it.",
    )
    keep: float = Field(
        default=0.85,
        gt=0,
        lt=1,
        description="Share of the prototypes that each round keeps. A larger share searches finer and takes longer.",
    )
    epochs: int = Field(
        default=5, ge=0, description="Epochs of the last layers after each round; most of the time of `auto`."
    )
    tolerance: float = Field(
        default=0.005,
        ge=0,
        lt=1,
        description="Accuracy over leaves that may be given up for fewer prototypes: 0.005 is half a point.",
    )


class CalibrationConfig(Section):
    """A softmax temperature per parent, fitted on the selection images after the last layers; of a plain classifier,
    one temperature."""

    enabled: bool = Field(
        default=True,
        description="Whether to calibrate. Switch it off to compare probabilities with the papers, which have none.",
    )


class NoveltyConfig(Section):
    """Thresholds per parent below which a picture is of an unknown class, fitted on the selection images."""

    enabled: bool = Field(
        default=True,
        description="Whether to fit thresholds. Without them a bundle calls every picture known; switch it off where "
        "all classes are known.",
    )
    score: NoveltyScore = Field(
        default="support",
        description="The score that has the threshold; benchmarks/results/novelty.md compares them.",
    )
    true_positive_rate: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="Share of the known selection images that pass as known. Raise it where a false alarm costs more "
        "than an unknown class that is missed.",
    )

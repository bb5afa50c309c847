"""The sections of the stages of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from protoserve.schema import NoveltyScore
from training.sections.section import Section


class StartConfig(Section):
    """Initialisation: prototypes start at cluster centres of the training cells of their own class."""

    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of every picture's cells that prototypes of inner nodes start from: those with the highest "
        "class activation for its leaf (Zhou et al. 2016) in a linear classifier. 1 uses all cells.",
    )


class FinetuneConfig(Section):
    """Fine-tuning before prototypes are trained: the backbone learns with a linear head (AdamW)."""

    epochs: int = Field(default=0, ge=0, description="Epochs. 0 keeps the backbone as it is.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate of the linear head.")
    backbone_learning_rate: float = Field(default=3e-4, gt=0, description="Learning rate of the backbone.")
    warm_up: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the stage over which the learning rates rise. Random weights learn faster with about 0.1 "
        "and a higher rate.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay, except for biases and norms.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    batch_norm: Literal["learned", "fixed"] = Field(
        default="learned",
        description="Whether batch normalisation updates its statistics or keeps those of `model.weights`. Every "
        "process normalises its own images, so set fixed if it has few per batch, or for the result of a single "
        "process.",
    )
    train_from: str | None = Field(
        default=None,
        description="First part of the backbone that learns, here and in `joint`, such as `features.14`. null trains "
        "the whole backbone. The output of earlier parts is computed once for `data.views` views of every image and "
        "cached on disk as float16.",
    )
    fresh: bool = Field(
        default=False,
        description="Whether every epoch draws new random crops instead of using cached views, as without "
        "`train_from`. Needs no disk space, but every epoch computes the whole backbone.",
    )


class LinearConfig(Section):
    """The linear head of `--head linear`."""

    epochs: int = Field(default=30, ge=0, description="Epochs. 0 keeps the head that fine-tuning trained.")
    learning_rate: float = Field(
        default=3e-3, gt=0, description="Learning rate. The best value depends on the scale of the backbone's features."
    )


class WarmConfig(Section):
    """Training of the add-on layers and prototypes; the last layers are frozen."""

    epochs: int = Field(default=1, ge=0, description="Epochs. Published: 1 (Hase et al.), 5 (Chen et al.).")
    learning_rate: float = Field(default=3e-3, gt=0, description="Learning rate, constant. Published: 3e-3.")


class JointConfig(Section):
    """Training of the add-on layers, the prototypes and, if `backbone_learning_rate` is above 0, the backbone from
    `finetune.train_from` on. Batch normalisation keeps its statistics. The learning rates decay along a cosine to 1 %
    of their initial values."""

    epochs: int = Field(default=30, ge=0, description="Epochs.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Learning rate of the add-on layers and prototypes.")
    backbone_learning_rate: float = Field(
        default=0.0,
        ge=0,
        description="Learning rate of the backbone and the reduction. 0 freezes both, so that features are computed "
        "once.",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="Weight decay if the backbone learns, except for biases and norms."
    )
    project_every: int = Field(default=5, ge=0, description="Epochs between projections. 0 projects only at the end.")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stops after this many epochs without better accuracy on the selection images, and restores the "
        "best epoch. null runs all epochs. Set it if training time matters more than comparable runs.",
    )


class AnchoredConfig(Section):
    """Training of the add-on layers and last layers after the last projection, while every prototype stays the cell
    that it was cut from (see training/stages/anchoring.py). Keeps the epoch with the best accuracy on the selection
    images, or the state before the first epoch if that is better. Not published."""

    epochs: int = Field(default=0, ge=0, description="Epochs. Published: 0.")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Learning rate of the add-on layers. Lower it if the first epoch is the best."
    )
    last_layers_learning_rate: float = Field(default=1e-3, gt=0, description="Learning rate of the last layers.")


class LastLayersConfig(Section):
    """Training of the last layers only. Keeps the epoch with the best accuracy on the selection images, or the state
    before the first epoch if that is better."""

    epochs: int = Field(default=10, ge=0, description="Epochs after the last projection. Chen et al. use 20.")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Learning rate, also of the refits of `prune` and `prototypes.auto`."
    )
    after_each_projection: bool = Field(
        default=False,
        description="Whether to train the last layers after each projection, as published, instead of only after the "
        "last. Multiplies the time of this stage by the number of projections.",
    )


class PruneConfig(Section):
    """Removal of prototypes whose nearest training patches belong to other classes (Chen et al. 2019). It follows the
    last projection; the last layers are then trained again."""

    enabled: bool = Field(
        default=False, description="Whether to prune, as published. `prototypes.auto` prunes in any case."
    )
    nearest: int = Field(default=6, ge=1, description="Nearest training patches to consider. Published: 6.")
    at_least: int = Field(
        default=3,
        ge=1,
        description="Number of these patches that must belong to the prototype's class. Published: 3, for about 30 "
        "images per class; lower it for smaller classes.",
    )

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> PruneConfig:
        if self.at_least > self.nearest:
            raise ValueError(f"at_least is {self.at_least} of {self.nearest} nearest patches; lower at_least")
        return self


class ReplaceConfig(Section):
    """Replacement, after the last projection, of prototypes that hardly tell their class from the siblings on the
    selection images, by training cells that do (see training/stages/replacing). Not published."""

    enabled: bool = Field(default=False, description="Whether to replace them. Published: no.")
    below: float = Field(
        default=1.0,
        description="Replaces prototypes below this effect: the difference of the mean similarities to the own class "
        "and to the siblings, in pooled standard deviations.",
    )
    candidates: int = Field(
        default=400, ge=1, description="Random training cells of each class that are scored. More take longer."
    )
    correlation: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Cells whose similarities to the class's images correlate by more than this say the same; only one "
        "of them is taken.",
    )


class PrototypesConfig(Section):
    """Automatic choice of the number of prototypes. `auto` starts with many. After the last projection it merges
    near-duplicates, prunes by `prune.nearest` and `prune.at_least`, and then removes the prototypes with the smallest
    contributions, round by round. It picks the smallest number within `tolerance` of the best accuracy on the selection
    images."""

    auto: bool = Field(default=False, description="Whether the run chooses the number itself (`--prototypes auto`).")
    start: int = Field(
        default=16,
        ge=1,
        description="Prototypes of every leaf that `auto` starts with, instead of `model.prototypes_per_child`. Time "
        "and memory of training grow with it.",
    )
    keep: float = Field(
        default=0.85,
        gt=0,
        lt=1,
        description="Share of the prototypes that each round keeps. A larger share makes the search finer and slower.",
    )
    epochs: int = Field(
        default=5, ge=0, description="Epochs of the last layers after each round. They take most of the search's time."
    )
    tolerance: float = Field(
        default=0.005,
        ge=0,
        lt=1,
        description="Leaf accuracy to give up for fewer prototypes: 0.005 is half a percentage point.",
    )


class CalibrationConfig(Section):
    """Calibration: a softmax temperature per parent, or one for a linear head, fitted on the selection images after the
    last layers."""

    enabled: bool = Field(
        default=True,
        description="Whether to calibrate. Turn it off to compare probabilities with the papers, which do not.",
    )


class PromiseConfig(Section):
    """The promise: an answer is the deepest node at which the stated precision still holds. Its thresholds are fitted
    on the selection images; a bundle keeps their scores, so that a request may state another precision."""

    precision: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="Share of the answers that are right, unless a request states another. A higher share stops more "
        "answers at upper levels, and takes more selection images: 104 for 0.95, 528 for 0.99.",
    )
    confidence: float = Field(
        default=0.99,
        gt=0.5,
        lt=1,
        description="Probability, over the draw of the selection images, that the promise holds. At 0.99, a count on "
        "as many new pictures confirms it in about 95 of 100 cases, because that count is as uncertain. At 0.95, it "
        "takes fewer selection images: 72 instead of 104 for a precision of 0.95.",
    )


class NoveltyConfig(Section):
    """Novelty detection: a threshold per parent, fitted on the selection images. A picture whose score is below it
    counts as an unknown class."""

    enabled: bool = Field(
        default=True,
        description="Whether to fit thresholds. Without them, a bundle treats every picture as known. Turn it off if "
        "all pictures belong to known classes.",
    )
    score: NoveltyScore = Field(
        default="support",
        description="The score to compare with the threshold; benchmarks/results/novelty.md compares the scores.",
    )
    true_positive_rate: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="Share of known pictures to accept as known. Raise it if a false alarm costs more than a missed "
        "unknown class. Takes 19 selection images below a parent for 0.95; parents with fewer share a threshold.",
    )

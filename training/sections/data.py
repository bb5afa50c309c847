"""The sections `data` and `loss`: the images that a run learns from, and the loss that it minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, field_validator

from training.sections.section import Section


class DataConfig(Section):
    """The images that a run learns from, and how they are augmented."""

    hold_out: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        default=0.1,
        description="Share of every leaf's training images that is held out for selection, in addition to `val` if the "
        "data set has one. auto: 0.1 if it has none, else 0.",
    )
    views: int = Field(
        default=2,
        ge=1,
        le=32,
        description="Views of each training image that a frozen backbone computes: the plain image, its mirror image, "
        "then random crops. Disk space and the time of the first epoch grow with it.",
    )
    zoom: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.75, 1.25),
        description="Smallest and largest side of a random crop, relative to the side of the plain view.",
    )
    mirror: bool = Field(
        default=True,
        description="Whether to train on mirror images, too. Turn it off if left and right differ, as in letters, "
        "digits and traffic signs.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="Seed of the hold-out and of the views. null uses the run's seed. Set it so that runs with "
        "different seeds learn from the same pictures and share cached features.",
    )
    leave_out: tuple[str, ...] = Field(
        default=(),
        description="Leaves to leave out of training, such as `Fruit/Apple/Granny-Smith`, to measure novelty detection "
        "(`--leave-out`).",
    )
    noise_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Noise pictures per training image if `loss.noise` is above 0. Each takes as much time as an "
        "image.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Threads that decode pictures. null uses one per processor core; lower it on a shared machine.",
    )

    @field_validator("zoom")
    @classmethod
    def _rising(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if zoom[0] > zoom[1]:
            raise ValueError("zoom takes the least factor first, then the greatest")
        return zoom


class LossConfig(Section):
    """Weights of the loss terms of a prototype network; training/losses.py gives the formulas."""

    cross_entropy: float = Field(
        default=1.0, ge=0, description="Cross-entropy of the conditionals along the path. Hase et al. use 20."
    )
    cluster: float = Field(default=0.2, ge=0, description="Clust: pulls images to a prototype of their class.")
    separation: float = Field(default=0.02, ge=0, description="Sep: pushes images away from prototypes of siblings.")
    l1: float = Field(default=1e-4, ge=0, description="L1 norm of weights between a child and others' prototypes.")
    l2: float = Field(default=1e-5, ge=0, description="Squared weights between a child and its own prototypes.")
    noise: float = Field(
        default=0.0,
        ge=0,
        description="Pulls the conditionals of noise pictures towards uniform in the stages warm and joint, as Hase et "
        "al. do. 0 trains without noise pictures, which is faster.",
    )
    outside: float = Field(
        default=0.0,
        ge=0,
        description="Pulls conditionals towards uniform at the parents that an image does not lie below. Published: 0.",
    )
    leaf: float = Field(
        default=0.0,
        ge=0,
        description="Cross-entropy over all leaves at once, on the sums of the logits along their paths. Published: 0.",
    )
    distillation: float = Field(
        default=0.0,
        ge=0,
        description="Pulls the conditionals towards those of a linear classifier, which is trained first on the same "
        "features, in stages with a frozen backbone. Published: 0.",
    )
    distillation_temperature: float = Field(
        default=2.0, gt=0, description="Temperature that softens both distributions of `distillation`."
    )
    average: Literal["image", "parent"] = Field(
        default="image",
        description="Whether every image or every parent has the same weight. Published: parent, which gives images of "
        "small branches more weight.",
    )

"""What a run learns from, and what it minimises."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, field_validator

from training.sections.section import Section


class DataConfig(Section):
    """Which images are learned from, and how they are varied."""

    hold_out: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of every leaf's training images that is held out for selection, beside `val` where there "
        "is one.",
    )
    views: int = Field(
        default=2,
        ge=1,
        le=32,
        description="Versions of each training image that a frozen backbone sees: the plain one, its mirror image, "
        "then random crops. Disk and the time of the first epoch grow with it.",
    )
    zoom: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.75, 1.25),
        description="Least and greatest side of a random crop, relative to the side that the plain view shows.",
    )
    mirror: bool = Field(
        default=True,
        description="Whether mirror images are learned from. Switch it off where left and right differ: letters, "
        "digits, traffic signs.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="Seed of the hold-out and of the views. null takes the run's. Set it so that runs of several seeds "
        "learn from the same pictures and share kept features.",
    )
    leave_out: tuple[str, ...] = Field(
        default=(),
        description="Leaves that the run does not learn, such as `Fruit/Apple/Granny-Smith`, to measure its answers "
        "to unknown classes (`--leave-out`).",
    )
    noise_share: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Noise pictures per training image where `loss.noise` is above 0. Each costs as much time as an "
        "image.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Threads that decode pictures. null takes one per processor core; lower it on a shared machine.",
    )

    @field_validator("zoom")
    @classmethod
    def _rising(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if zoom[0] > zoom[1]:
            raise ValueError("zoom names the least factor first, then the greatest")
        return zoom


class LossConfig(Section):
    """Weights of the terms of the loss of a prototype network; see training/losses for the formulas."""

    cross_entropy: float = Field(
        default=1.0, ge=0, description="Cross-entropy of the conditionals along the path. Hase et al. publish 20."
    )
    cluster: float = Field(default=0.2, ge=0, description="Clust: every image has a prototype of its own class near.")
    separation: float = Field(default=0.02, ge=0, description="Sep: prototypes of siblings stay away.")
    l1: float = Field(default=1e-4, ge=0, description="L1 norm of weights between a child and others' prototypes.")
    l2: float = Field(default=1e-5, ge=0, description="Squared weights between a child and its own prototypes.")
    noise: float = Field(
        default=0.0,
        ge=0,
        description="Pushes pictures of uniform noise towards uniform conditionals in the warm and joint stages, as "
        "Hase et al. publish. 0 leaves them out, which saves their time.",
    )
    outside: float = Field(
        default=0.0,
        ge=0,
        description="Pushes every image towards uniform conditionals at the parents that it does not lie below. "
        "Published: 0.",
    )
    leaf: float = Field(
        default=0.0,
        ge=0,
        description="Cross-entropy over all leaves at once, on the sums of the logits along their paths. Published: 0.",
    )
    distillation: float = Field(
        default=0.0,
        ge=0,
        description="Pulls the conditionals towards those of a plain linear classifier on the same features, trained "
        "first, wherever the backbone is frozen. Published: 0.",
    )
    distillation_temperature: float = Field(
        default=2.0, gt=0, description="Softens both distributions of `distillation`."
    )
    average: Literal["image", "parent"] = Field(
        default="image",
        description="Whether every image or every parent counts the same. parent is published; under it, an image of a "
        "small branch weighs more.",
    )

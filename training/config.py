"""One YAML file per run, checked whole before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protoserve.bundle import InputRule
from protoserve.errors import InputError, nearest
from protoserve.networks.similarity import Similarity


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """The network. `stride` picks a finer feature map of the backbone; `reduced` is the width that a principal
    component analysis brings the features down to (null: none). An inner node gets ⌈√leaves below⌉ times
    `prototypes_per_child`, at most `inner_factor` times; 1 is as published."""

    kind: Literal["hierarchical", "flat"] = "hierarchical"
    backbone: str = "mobilenet_v2"
    weights: str | None = "DEFAULT"
    stride: int | None = Field(default=None, ge=1)
    reduced: int | None = Field(default=256, ge=1)
    dimensions: int = Field(default=128, ge=1)
    prototypes_per_child: int = Field(default=8, ge=1)
    inner_factor: int = Field(default=4, ge=1)
    similarity: Similarity = "log1p"
    epsilon: float = Field(default=0.1, gt=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)


class DataConfig(Section):
    """`hold_out` is the share of every leaf's training images kept for selection, beside `val` where there is one.
    `views` is how many versions of each training image a frozen backbone sees: the plain one, its mirror image,
    then random crops of at least `crop_scale` of the area."""

    hold_out: float = Field(default=0.1, ge=0, lt=1)
    views: int = Field(default=2, ge=1, le=32)
    crop_scale: float = Field(default=0.6, gt=0, le=1)
    mirror: bool = True


class LossConfig(Section):
    """Weights of the terms; `average` says whether every image or every parent counts the same (see losses)."""

    cross_entropy: float = Field(default=1.0, ge=0)
    cluster: float = Field(default=0.2, ge=0)
    separation: float = Field(default=0.02, ge=0)
    l1: float = Field(default=1e-4, ge=0)
    l2: float = Field(default=1e-5, ge=0)
    average: Literal["image", "parent"] = "image"


class FinetuneConfig(Section):
    """Plain classification first: the backbone with a linear head, on random views. `train_from` names the first part
    of the backbone that learns (for example `features.14`); null trains all of it."""

    epochs: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    backbone_learning_rate: float = Field(default=3e-4, gt=0)
    train_from: str | None = None


class LinearConfig(Section):
    """The plain classifier of `--head linear`, on the same features."""

    epochs: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)


class WarmConfig(Section):
    """Add-on layers and prototypes alone, the last layers fixed."""

    epochs: int = Field(default=1, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)


class JointConfig(Section):
    """Add-on layers and prototypes, and the backbone where `backbone_learning_rate` > 0; a projection every
    `project_every` epochs (0: only at the end)."""

    epochs: int = Field(default=30, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)
    backbone_learning_rate: float = Field(default=0.0, ge=0)
    project_every: int = Field(default=5, ge=0)
    cosine: bool = True


class LastLayersConfig(Section):
    """The last layers alone, after the final projection or, as published, after each one; the epoch that classifies
    the selection images best is kept, which may be none."""

    epochs: int = Field(default=10, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    after_each_projection: bool = False


class Config(Section):
    """A run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=64, ge=1)
    image: InputRule = InputRule(height=224, width=224, resize="crop")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    linear: LinearConfig = LinearConfig()
    warm: WarmConfig = WarmConfig()
    joint: JointConfig = JointConfig()
    last_layers: LastLayersConfig = LastLayersConfig()

    @model_validator(mode="after")
    def _reduction_needs_a_frozen_backbone(self) -> Config:
        if self.joint.backbone_learning_rate > 0 and self.model.reduced is not None:
            raise ValueError(
                "model.reduced is a fixed analysis of a frozen backbone's features: set model.reduced to null or "
                "joint.backbone_learning_rate to 0"
            )
        return self


def read_config(file: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read and check a YAML file; `overrides` such as `{"seed": 1, "model.weights": "w.pth"}` win over it.

    Raises InputError naming the file, the key, the value, and for an unknown key the nearest known one.
    """
    import yaml

    if not file.is_file():
        shipped = sorted(entry.name for entry in (Path(__file__).parent / "configs").glob("*.yaml"))
        raise InputError(f"{file}: no such configuration; training/configs holds {', '.join(shipped)}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds {content!r}; write keys and values, at least 'name: …'")
    for key, value in (overrides or {}).items():
        section = content
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        # What is no section is named by the check below.
        if isinstance(section, dict):
            section[last] = value
    return parse_config(content, str(file))


def parse_config(content: dict[str, Any], origin: str) -> Config:
    """Check a configuration that is already a mapping; `origin` names it in errors."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        name = ".".join(place) or "the configuration"
        if first["type"] == "extra_forbidden":
            known = _keys(place[:-1])
            raise InputError(
                f"{origin}: unknown key {name!r}{nearest(place[-1], known)}; known here: {', '.join(known)}"
            ) from error
        if first["type"] == "missing":
            raise InputError(f"{origin}: the key {name!r} is missing; add it") from error
        raise InputError(f"{origin}: {name}: {first['msg']} (given: {_short(first['input'])})") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _keys(place: list[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in place:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return list(section.model_fields)

"""The configuration of a run: one YAML file, checked as a whole before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from protoserve.errors import InputError, nearest
from protoserve.files import parse_yaml, read_yaml
from protoserve.images.geometry import InputRule, tile_grid
from training.sections.data import DataConfig, LossConfig
from training.sections.network import AutoencoderConfig, Engine, ModelConfig, Precision
from training.sections.section import Section
from training.sections.stages import (
    AnchoredConfig,
    CalibrationConfig,
    FinetuneConfig,
    JointConfig,
    LastLayersConfig,
    LinearConfig,
    NoveltyConfig,
    PromiseConfig,
    PrototypesConfig,
    PruneConfig,
    ReplaceConfig,
    StartConfig,
    WarmConfig,
)

# Keys that earlier versions wrote into config.yaml, each with the value that is now built in.
REMOVED = {
    ("start", "inner_nodes"): True,
    ("finetune", "layer_decay"): 1.0,
    ("joint", "layer_decay"): 1.0,
    ("joint", "cosine"): True,
    ("prototypes", "merge_within"): 0.1,
}


class Config(Section):
    """The configuration of a run."""

    name: str = Field(
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="The run's name: letters, digits, `.`, `_`, `-`. Exports carry it.",
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of all random numbers (`--seed`). The same seed gives the same weights."
    )
    batch: int = Field(default=64, ge=1, description="Images per batch, over all processes together.")
    precision: Precision = Field(
        default="auto",
        description="Precision of the backbone while it learns; everything else is float32. auto: bfloat16 on a GPU "
        "that supports it, else float32. Set float32 to compare devices, float16 for older GPUs. On an x86 processor "
        "with instructions for it (AVX512-BF16, AMX), bfloat16 is quicker, too.",
    )
    compile: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether to compile the backbone while it learns. auto: on a GPU, if the run has enough images to "
        "recover the minute that compiling takes.",
    )
    features: Engine = Field(
        default="auto",
        description="What computes the features of a frozen backbone. auto: onnxruntime on a CPU for convolutional "
        "networks and enough images, else PyTorch. They differ by less than 1e-4 of the largest feature.",
    )
    image: InputRule = InputRule(height=224, width=224, resize="crop")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    start: StartConfig = StartConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    linear: LinearConfig = LinearConfig()
    warm: WarmConfig = WarmConfig()
    joint: JointConfig = JointConfig()
    anchored: AnchoredConfig = AnchoredConfig()
    last_layers: LastLayersConfig = LastLayersConfig()
    prune: PruneConfig = PruneConfig()
    replace: ReplaceConfig = ReplaceConfig()
    prototypes: PrototypesConfig = PrototypesConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    novelty: NoveltyConfig = NoveltyConfig()
    promise: PromiseConfig = PromiseConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()

    @property
    def data_seed(self) -> int:
        """The seed of the hold-out and of the views: `data.seed` if it is set, else the run's seed."""
        return self.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="after")
    def _sections_belong_to_the_kind(self) -> Config:
        if self.model.kind != "autoencoder":
            if self.autoencoder != AutoencoderConfig():
                raise ValueError("the section autoencoder needs model.kind: autoencoder; set it or remove the section")
            return self
        if self.model != ModelConfig(kind="autoencoder"):
            raise ValueError(
                "an autoencoder has no backbone: set only kind in the section model, leave out --weights, and "
                "describe the network in the section autoencoder"
            )
        stages = (
            "start",
            "finetune",
            "linear",
            "warm",
            "joint",
            "anchored",
            "last_layers",
            "prune",
            "replace",
            "prototypes",
        )
        for name in ("loss", *stages):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"the section {name} does not apply to an autoencoder; remove it")
        return self

    @model_validator(mode="after")
    def _tiles_cover_the_picture(self) -> Config:
        tile, step = self.model.tile, self.model.tile_step
        if tile is not None:
            try:
                tile_grid(self.image.height, self.image.width, tile, tile if step is None else step)
            except InputError as error:
                raise ValueError(f"model.tile: {error}") from error
        return self


def read_config(file: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read and check a YAML file; `overrides` such as `{"seed": 1, "model.weights": "w.pth"}` replace its values.

    Raises InputError that names the file, the key and the value, and for an unknown key the nearest known one.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such configuration; give a YAML file")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds {content!r}; write keys and values, at least 'name: …'")
    for key, value in (overrides or {}).items():
        section = content
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {}) if isinstance(section, dict) else None
        # `parse_config` reports a value where a section should be.
        if isinstance(section, dict):
            section[last] = value
    return parse_config(content, str(file))


def read_settings(settings: list[str]) -> dict[str, Any]:
    """Parse `["joint.epochs=20", …]` into overrides for `read_config`, with the values read as YAML.

    If a key is set several times, the last setting wins, so that scripts can append to a recipe. Raises InputError for
    a setting without `=` and for a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: write KEY=VALUE, for example --set joint.epochs=20")
        overrides[key] = parse_yaml(value, f"--set {setting}")
    return overrides


def parse_config(content: dict[str, Any], origin: str) -> Config:
    """Check a configuration given as a mapping; `origin` names it in errors.

    Accepts a key of an earlier version if its value is the one that is now built in.
    """
    content = _without_removed_keys(content)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        name = ".".join(path) or "the configuration"
        if first["type"] == "extra_forbidden":
            known = _keys(path[:-1])
            raise InputError(
                f"{origin}: unknown key {name!r}{nearest(path[-1], known)}; known here: {', '.join(known)}"
            ) from error
        if first["type"] == "missing":
            raise InputError(f"{origin}: the key {name!r} is missing; add it") from error
        raise InputError(f"{origin}: {name}: {first['msg']} (given: {_short(first['input'])})") from error


def _without_removed_keys(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration without those keys of `REMOVED` that have the built-in value. Others stay, to be rejected."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for (section, key), built_in in REMOVED.items():
        if isinstance(keys := kept.get(section), dict) and key in keys and keys[key] == built_in:
            del keys[key]
    return kept


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _keys(path: list[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in path:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return list(section.model_fields)

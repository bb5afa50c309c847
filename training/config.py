"""One YAML file per run, checked whole before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator, model_validator

from protoserve.bundle.folder import InputRule
from protoserve.errors import InputError, nearest
from protoserve.files import parse_yaml, read_yaml
from protoserve.networks.network import Latent
from protoserve.networks.similarity import Similarity
from protoserve.novelty import Score


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """The network; one of `kind: autoencoder` is described by the section `autoencoder` alone. `stride` picks a finer
    feature map of the backbone; `reduced` is the width that a principal component analysis brings the features down to
    (null: none). An inner node gets ⌈√leaves below⌉ times `prototypes_per_child`, at most `inner_factor` times; 1 is as
    published. `latent: sphere` compares directions instead of values in (0, 1); `smoothing` (odd) makes every cell the
    mean of so many cells squared, and boxes as large; `hidden` is the width of a rectified layer in the add-on layers
    (null: they are one convolution; see `PrototypeNetwork`). `zero` is the squared distance at which the similarity is
    0 (null: as published; see `PrototypeHead`)."""

    kind: Literal["hierarchical", "flat", "autoencoder"] = "hierarchical"
    backbone: str = "mobilenet_v2"
    weights: str | None = "DEFAULT"
    stride: int | None = Field(default=None, ge=1)
    reduced: int | None = Field(default=256, ge=1)
    dimensions: int = Field(default=128, ge=1)
    prototypes_per_child: int = Field(default=8, ge=1)
    inner_factor: int = Field(default=4, ge=1)
    similarity: Similarity = "log1p"
    latent: Latent = "sigmoid"
    smoothing: int = Field(default=1, ge=1)
    hidden: int | None = Field(default=None, ge=1)
    zero: float | None = Field(default=None, gt=0)
    epsilon: float = Field(default=0.1, gt=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)

    @field_validator("smoothing")
    @classmethod
    def _odd(cls, smoothing: int) -> int:
        if smoothing % 2 == 0:
            raise ValueError("smoothing must be odd: 1 (none), 3, 5, …")
        return smoothing


class DataConfig(Section):
    """`hold_out` is the share of every leaf's training images kept for selection, beside `val` where there is one.
    `views` is how many versions of each training image a frozen backbone sees: the plain one, its mirror image,
    then random crops whose sides are `zoom` (least, greatest) times those of the part that the plain one shows.
    `seed` is that of the hold-out and of the views (null: the run's), so that runs of several seeds may learn from
    the same. `leave_out` names leaves (`Fruit/Apple/Granny-Smith`) that
    the run is not to know, to measure what it says about the unknown. `noise_share` is how many pictures of noise
    there are for every training image where `loss.noise` is not 0. `workers` is how many threads decode pictures
    (null: one for each processor core)."""

    hold_out: float = Field(default=0.1, ge=0, lt=1)
    views: int = Field(default=2, ge=1, le=32)
    zoom: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25)
    mirror: bool = True
    seed: int | None = Field(default=None, ge=0)
    leave_out: tuple[str, ...] = ()
    noise_share: float = Field(default=0.1, gt=0, le=1)
    workers: int | None = Field(default=None, ge=1)

    @field_validator("zoom")
    @classmethod
    def _rising(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if zoom[0] > zoom[1]:
            raise ValueError("zoom names the least factor first, then the greatest")
        return zoom


class LossConfig(Section):
    """Weights of the terms; `average` says whether every image or every parent counts the same (see losses). `noise`
    pushes pictures of uniform noise towards uniform conditionals in the warm and joint stages; 0 leaves them out.
    `outside` pushes every image towards uniform conditionals at the parents that it does not lie below, and `leaf`
    weighs a cross-entropy over all leaves at once, on the sums of the logits along their paths (see losses); 0 is as
    published.
    `distillation` pulls the conditionals towards those of a plain linear classifier on the same features, trained
    first, wherever the backbone stands still; 0 is as published."""

    cross_entropy: float = Field(default=1.0, ge=0)
    cluster: float = Field(default=0.2, ge=0)
    separation: float = Field(default=0.02, ge=0)
    l1: float = Field(default=1e-4, ge=0)
    l2: float = Field(default=1e-5, ge=0)
    noise: float = Field(default=0.0, ge=0)
    outside: float = Field(default=0.0, ge=0)
    leaf: float = Field(default=0.0, ge=0)
    distillation: float = Field(default=0.0, ge=0)
    distillation_temperature: float = Field(default=2.0, gt=0)
    average: Literal["image", "parent"] = "image"


class StartConfig(Section):
    """Where prototypes start: at cluster centres of their own class's training cells. With `share` < 1, not of all
    cells, but of this share of every picture's, those that speak most for its leaf by a plain linear classifier on the
    same features (class activation, Zhou et al. 2016); `inner_nodes` does so for these alone."""

    share: float = Field(default=1.0, gt=0, le=1)
    inner_nodes: bool = True


class FinetuneConfig(Section):
    """Plain classification first: the backbone with a linear head. `train_from` names the first part of the backbone
    that learns, here and in `joint` (for example `features.14`); null trains all of it.

    What the parts before `train_from` give for `data.views` views of every image is kept on disk, as float16, so that
    an epoch costs only what learns; with `fresh`, or where all of the backbone learns, every epoch sees new random
    crops instead. The last block learns at `backbone_learning_rate`, each one before it at `layer_decay` times the rate
    of the next. `weight_decay` (AdamW) spares biases and norms. `batch_norm: fixed` keeps the statistics that the
    weights came with, for batches too small to have their own."""

    epochs: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    backbone_learning_rate: float = Field(default=3e-4, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    batch_norm: Literal["learned", "fixed"] = "learned"
    train_from: str | None = None
    fresh: bool = False


class LinearConfig(Section):
    """The plain classifier of `--head linear`, on the same features; 0 epochs where fine-tuning has trained it."""

    epochs: int = Field(default=30, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)


class WarmConfig(Section):
    """Add-on layers and prototypes alone, the last layers fixed."""

    epochs: int = Field(default=1, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)


class JointConfig(Section):
    """Add-on layers and prototypes, and the backbone from `finetune.train_from` on where `backbone_learning_rate` > 0
    (its batch normalisation keeps its statistics; the reduction learns with its last block); a projection every
    `project_every` epochs (0: only at the end). With `patience`, training stops once that many epochs have not
    classified the selection images better, and the best epoch's weights are taken."""

    epochs: int = Field(default=30, ge=0)
    learning_rate: float = Field(default=3e-3, gt=0)
    backbone_learning_rate: float = Field(default=0.0, ge=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    project_every: int = Field(default=5, ge=0)
    cosine: bool = True
    patience: int | None = Field(default=None, ge=1)


class AnchoredConfig(Section):
    """Add-on layers and last layers after the last projection, with every prototype staying the cell that it was cut
    from (see training/anchoring); the epoch that classifies the selection images best is kept, which may be none. Not
    in the papers: 0 epochs is as published."""

    epochs: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    last_layers_learning_rate: float = Field(default=1e-3, gt=0)


class LastLayersConfig(Section):
    """The last layers alone, after the final projection or, as published, after each one; the epoch that classifies
    the selection images best is kept, which may be none."""

    epochs: int = Field(default=10, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    after_each_projection: bool = False


class PruneConfig(Section):
    """Prototypes of which fewer than `at_least` of the `nearest` training patches are of their own class are removed
    after the last projection, and the last layers fitted once more; 6 and 3 are the published numbers."""

    enabled: bool = False
    nearest: int = Field(default=6, ge=1)
    at_least: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> PruneConfig:
        if self.at_least > self.nearest:
            raise ValueError(f"at_least is {self.at_least} of {self.nearest} nearest patches; lower at_least")
        return self


class PrototypesConfig(Section):
    """How many prototypes. `auto` starts with `start` per child instead of `model.prototypes_per_child`; after the last
    projection it merges near-duplicates (`merge_within`: share of the median distance between siblings' prototypes),
    prunes by `prune.nearest` and `prune.at_least`, and then by contribution in rounds that each keep the share `keep`,
    with `epochs` of the last layers after each. The smallest number within `tolerance` of the best accuracy over
    leaves on the selection images wins."""

    auto: bool = False
    start: int = Field(default=16, ge=1)
    merge_within: float = Field(default=0.1, ge=0, lt=1)
    keep: float = Field(default=0.85, gt=0, lt=1)
    epochs: int = Field(default=5, ge=0)
    tolerance: float = Field(default=0.005, ge=0, lt=1)


class CalibrationConfig(Section):
    """A temperature per parent, fitted on the selection images after the last layers; of a plain classifier, one."""

    enabled: bool = True


class NoveltyConfig(Section):
    """Thresholds below which a picture is of an unknown class, per parent: that of `score` lets `true_positive_rate` of
    the selection images below the parent pass as known."""

    enabled: bool = True
    score: Score = "support"
    true_positive_rate: float = Field(default=0.95, gt=0, lt=1)


class ElasticConfig(Section):
    """Random smooth deformation of every training picture: `alpha` its strength (0: none), `sigma` its smoothness, both
    in pixels (Simard et al. 2003)."""

    sigma: float = Field(default=4.0, gt=0)
    alpha: float = Field(default=20.0, ge=0)


class AutoencoderConfig(Section):
    """The prototype autoencoder (Li et al. 2018) of `model.kind: autoencoder`, by default as published.

    `channels` are the maps of the encoder's layers, each of which halves the picture; `grey` reads pictures as one
    plane, the mean of their colours. Weights of the loss: cross-entropy; reconstruction (R); `prototype_near_code` (R1)
    and `code_near_prototype` (R2), which hold prototypes and codes together. The rate falls along a cosine."""

    channels: tuple[int, ...] = Field(default=(32, 32, 32, 10), min_length=1, max_length=8)
    grey: bool = True
    prototypes: int = Field(default=15, ge=2)
    epochs: int = Field(default=80, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    cross_entropy: float = Field(default=20.0, gt=0)
    reconstruction: float = Field(default=1.0, ge=0)
    prototype_near_code: float = Field(default=1.0, ge=0)
    code_near_prototype: float = Field(default=1.0, ge=0)
    elastic: ElasticConfig = ElasticConfig()


Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Config(Section):
    """A run. `batch` is that of all processes together. `precision` and `compile` say how a backbone computes while it
    learns (`auto`: bfloat16 and compiled on a GPU where that helps); all else is float32."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=64, ge=1)
    precision: Precision = "auto"
    compile: Literal["auto"] | bool = "auto"
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
    prototypes: PrototypesConfig = PrototypesConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    novelty: NoveltyConfig = NoveltyConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()

    @property
    def data_seed(self) -> int:
        """The seed of the hold-out and of the views."""
        return self.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="after")
    def _sections_belong_to_the_kind(self) -> Config:
        if self.model.kind != "autoencoder":
            if self.autoencoder != AutoencoderConfig():
                raise ValueError("the section autoencoder needs model.kind: autoencoder; set it or remove the section")
            return self
        if self.model != ModelConfig(kind="autoencoder"):
            raise ValueError(
                "an autoencoder has no backbone: beside model.kind leave the section model (and --weights) out, and "
                "write the network into the section autoencoder"
            )
        stages = ("start", "finetune", "linear", "warm", "joint", "anchored", "last_layers", "prune", "prototypes")
        for name in ("loss", *stages):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"the section {name} is none of an autoencoder's; remove it")
        return self


def read_config(file: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read and check a YAML file; `overrides` such as `{"seed": 1, "model.weights": "w.pth"}` win over it.

    Raises InputError naming the file, the key, the value, and for an unknown key the nearest known one.
    """
    if not file.is_file():
        shipped = sorted(entry.name for entry in (Path(__file__).parent / "configs").glob("*.yaml"))
        raise InputError(f"{file}: no such configuration; training/configs holds {', '.join(shipped)}")
    content = read_yaml(file)
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


def read_settings(settings: list[str]) -> dict[str, Any]:
    """`["joint.epochs=20", …]` as overrides for `read_config`, the values read as YAML.

    Raises InputError for a setting without `=` or with a value that is no YAML.
    """
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: write KEY=VALUE, for example --set joint.epochs=20")
        found[key] = parse_yaml(value, f"--set {setting}")
    return found


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

"""The sections `model` and `autoencoder`: the network that a run trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from protoserve.networks.network import Latent
from protoserve.networks.similarity import SimilarityForm
from training.sections.section import Section

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Engine = Literal["auto", "torch", "onnxruntime"]


class ModelConfig(Section):
    """The network. For an autoencoder, set `kind` only; the section `autoencoder` describes the rest."""

    kind: Literal["hierarchical", "flat", "autoencoder"] = Field(
        default="hierarchical",
        description="hierarchical: one softmax per parent (Hase et al. 2019). flat: one softmax over all leaves (Chen "
        "et al. 2019). autoencoder: compares codes of whole pictures, which a decoder can draw (Li et al. 2018).",
    )
    backbone: str = Field(
        default="mobilenet_v2",
        description="Name of a torchvision classification model, or `timm/NAME` for a model of timm (extra `timm`), "
        "such as `timm/convnext_tiny` or, with the tag of its weights, `timm/vit_small_patch14_dinov2.lvd142m`. "
        "Pictures are normalised as its weights expect. The map of a transformer is the grid of its patch tokens.",
    )
    weights: str | None = Field(
        default="DEFAULT",
        description="Initial weights of the backbone: a file (`.safetensors`, else as `torch.save` writes it), a "
        "finished run's folder, a name or tag that torchvision or timm downloads, or null for random weights.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Stride of the feature map, in pixels per cell: uses the backbone's last map of that stride. null "
        "uses its last map. Finer maps have smaller receptive fields, so prototypes can be parts.",
    )
    reduced: int | None = Field(
        default=256,
        ge=1,
        description="Number of principal components to which features are reduced. null keeps all features. The size "
        "of cached features grows with it.",
    )
    dimensions: int = Field(default=128, ge=1, description="Width D of a cell and of a prototype.")
    prototypes_per_child: int = Field(default=8, ge=1, description="Prototypes of every leaf.")
    inner_factor: int = Field(
        default=4,
        ge=1,
        description="An inner node gets ⌈√(leaves below it)⌉ · `prototypes_per_child` prototypes; this limits the "
        "factor. 1 gives all nodes the same number, as published.",
    )
    similarity: SimilarityForm = Field(
        default="log1p",
        description="Function from squared distance to similarity; protoserve/networks/similarity.py gives the "
        "formulas.",
    )
    latent: Latent = Field(
        default="sigmoid",
        description="sigmoid: the values of a cell lie in (0, 1), as published. sphere: cells have unit length, so "
        "that only their direction matters.",
    )
    smoothing: int = Field(
        default=1,
        ge=1,
        description="Side of a square mean filter over the feature map, in cells, odd. Boxes grow with it. 1 leaves "
        "the map as it is.",
    )
    tile: int | None = Field(
        default=None,
        ge=1,
        description="Side of square tiles, in pixels of the input. The backbone sees each tile as a picture of its own "
        "and its mean feature is one cell, so no pixel outside a tile can change the cell. null shows the backbone the "
        "whole picture.",
    )
    tile_step: int | None = Field(
        default=None,
        ge=1,
        description="Pixels from one tile to the next, at most `tile`. null: `tile`, so that tiles do not overlap. "
        "Halving it costs about four times as much computation. With `receptive_field`: pixels from one cell to the "
        "next; null: `stride`.",
    )
    receptive_field: int | None = Field(
        default=None,
        ge=1,
        description="Side of the square of pixels that a cell may see, at most. Convolutions become 1 × 1 where a cell "
        "would see more, as in BagNet. For backbones of convolutions, pools and batch norms, trained from scratch. "
        "null: no limit.",
    )
    hidden: int | None = Field(
        default=None,
        ge=1,
        description="Width of a ReLU layer in the add-on layers. null makes them a single convolution.",
    )
    zero: float | None = Field(
        default=None, gt=0, description="Squared distance at which the similarity is 0. null uses the published form."
    )
    epsilon: float = Field(default=0.1, gt=0, description="Keeps the similarity finite at distance 0. Published: 1e-4.")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="Dropout of features while the head learns.")

    @field_validator("smoothing")
    @classmethod
    def _odd(cls, smoothing: int) -> int:
        if smoothing % 2 == 0:
            raise ValueError("smoothing must be odd: 1 (none), 3, 5, …")
        return smoothing

    @model_validator(mode="after")
    def _tiles_stand_alone(self) -> ModelConfig:
        if self.tile is None and self.receptive_field is None and self.tile_step is not None:
            raise ValueError("tile_step needs tile, the side of the tiles; set it or leave out tile_step")
        if self.tile is not None and self.receptive_field is not None:
            raise ValueError("tile and receptive_field both limit what a cell sees; leave out one of them")
        for name in ("tile", "receptive_field"):
            if getattr(self, name) is None:
                continue
            if self.kind == "autoencoder":
                raise ValueError(
                    f"{name} does not apply to an autoencoder, which compares codes of whole pictures; remove it"
                )
            if self.smoothing > 1:
                raise ValueError(
                    f"smoothing: {self.smoothing} mixes the features of neighbouring cells, so boxes would no longer "
                    f"be true; leave out smoothing or {name}"
                )
        return self


class ElasticConfig(Section):
    """Elastic deformation of every training picture by a smooth random displacement field (Simard et al. 2003)."""

    sigma: float = Field(default=4.0, gt=0, description="Standard deviation of the field's Gaussian, in pixels.")
    alpha: float = Field(default=20.0, ge=0, description="Strength of the field, in pixels. 0 deforms nothing.")


class AutoencoderConfig(Section):
    """The prototype autoencoder of `model.kind: autoencoder` (Li et al. 2018); the defaults are the published values.
    The learning rate decays along a cosine to 1 % of its initial value."""

    channels: tuple[int, ...] = Field(
        default=(32, 32, 32, 10),
        min_length=1,
        max_length=8,
        description="Feature maps of each layer of the encoder; every layer halves the resolution.",
    )
    grey: bool = Field(
        default=True,
        description="Whether to average the colour channels into one. Turn it off if classes differ by colour.",
    )
    prototypes: int = Field(default=15, ge=2, description="Number of prototypes.")
    epochs: int = Field(default=80, ge=1, description="Epochs.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Learning rate.")
    cross_entropy: float = Field(default=20.0, gt=0, description="Weight of the cross-entropy over leaves.")
    reconstruction: float = Field(default=1.0, ge=0, description="Weight of R, the reconstruction error.")
    prototype_near_code: float = Field(
        default=1.0, ge=0, description="Weight of R1: pulls every prototype to a training code."
    )
    code_near_prototype: float = Field(
        default=1.0, ge=0, description="Weight of R2: pulls every training code to a prototype."
    )
    elastic: ElasticConfig = ElasticConfig()

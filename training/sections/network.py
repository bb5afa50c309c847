"""Which network a run trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from protoserve.networks.network import Latent
from protoserve.networks.similarity import SimilarityForm
from training.sections.section import Section

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(Section):
    """The network. An autoencoder takes `kind` alone; the section `autoencoder` describes the rest of it."""

    kind: Literal["hierarchical", "flat", "autoencoder"] = Field(
        default="hierarchical",
        description="hierarchical: one softmax per parent (Hase et al. 2019). flat: one softmax over all leaves (Chen "
        "et al. 2019). autoencoder: whole pictures are compared in a code that a decoder can draw (Li et al. 2018).",
    )
    backbone: str = Field(default="mobilenet_v2", description="torchvision's name of a classification model.")
    weights: str | None = Field(
        default="DEFAULT",
        description="Where the backbone starts: a file, a finished run's folder, a name that torchvision downloads, or "
        "null for random weights.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Pixels per cell: takes the backbone's last feature map of that stride. null takes the last of "
        "all. Finer maps have smaller receptive fields, so prototypes can be parts.",
    )
    reduced: int | None = Field(
        default=256,
        ge=1,
        description="Width to which a principal component analysis reduces the features. null keeps them all. The disk "
        "that kept features take grows with it.",
    )
    dimensions: int = Field(default=128, ge=1, description="Width D of a cell and of a prototype.")
    prototypes_per_child: int = Field(default=8, ge=1, description="Prototypes of every leaf.")
    inner_factor: int = Field(
        default=4,
        ge=1,
        description="An inner node gets ⌈√leaves below⌉ times `prototypes_per_child`, at most this many times. 1 gives "
        "all nodes the same number, as published.",
    )
    similarity: SimilarityForm = Field(
        default="log1p", description="How a squared distance becomes a similarity; see protoserve/networks/similarity."
    )
    latent: Latent = Field(
        default="sigmoid",
        description="sigmoid: cells lie in (0, 1), as published. sphere: cells have unit length, so that only their "
        "direction counts.",
    )
    smoothing: int = Field(
        default=1,
        ge=1,
        description="Side, odd, of the square of cells whose mean each cell becomes; boxes grow with it. 1 leaves the "
        "map as it is.",
    )
    hidden: int | None = Field(
        default=None,
        ge=1,
        description="Width of a rectified layer in the add-on layers. null makes them one convolution.",
    )
    zero: float | None = Field(
        default=None, gt=0, description="Squared distance at which the similarity is 0. null leaves it as published."
    )
    epsilon: float = Field(
        default=0.1, gt=0, description="Keeps the similarity finite where the distance is 0; published: 1e-4."
    )
    dropout: float = Field(default=0.3, ge=0, lt=1, description="Dropout of features while the head learns.")

    @field_validator("smoothing")
    @classmethod
    def _odd(cls, smoothing: int) -> int:
        if smoothing % 2 == 0:
            raise ValueError("smoothing must be odd: 1 (none), 3, 5, …")
        return smoothing


class ElasticConfig(Section):
    """Elastic deformation of every training picture: a smooth random field moves its pixels (Simard et al. 2003)."""

    sigma: float = Field(default=4.0, gt=0, description="Standard deviation of the field's Gaussian, in pixels.")
    alpha: float = Field(default=20.0, ge=0, description="Strength of the field, in pixels. 0 deforms nothing.")


class AutoencoderConfig(Section):
    """The prototype autoencoder of `model.kind: autoencoder` (Li et al. 2018), by default as published. The rate falls
    along a cosine to 1 % of itself."""

    channels: tuple[int, ...] = Field(
        default=(32, 32, 32, 10),
        min_length=1,
        max_length=8,
        description="Maps of each layer of the encoder; every layer halves the picture.",
    )
    grey: bool = Field(
        default=True,
        description="Whether to read pictures as one plane, the mean of their colours. Switch it off where colour "
        "tells classes apart.",
    )
    prototypes: int = Field(default=15, ge=2, description="Prototypes in all.")
    epochs: int = Field(default=80, ge=1, description="Epochs.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Learning rate.")
    cross_entropy: float = Field(default=20.0, gt=0, description="Weight of the cross-entropy over leaves.")
    reconstruction: float = Field(default=1.0, ge=0, description="Weight of R: decoded pictures match the given ones.")
    prototype_near_code: float = Field(
        default=1.0, ge=0, description="Weight of R1: every prototype has a training code near."
    )
    code_near_prototype: float = Field(
        default=1.0, ge=0, description="Weight of R2: every training code has a prototype near."
    )
    elastic: ElasticConfig = ElasticConfig()

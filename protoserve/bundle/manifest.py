"""The manifest of a bundle: everything that a reader needs in addition to the graph."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AliasChoices, Field, FiniteFloat

from protoserve.bundle.curation import CurationLink
from protoserve.bundle.plain_text import PlainText
from protoserve.bundle.truth_card import TruthCard
from protoserve.images.geometry import Cells, InputRule
from protoserve.run.provenance import Provenance
from protoserve.run.records import Metrics
from protoserve.schema import Box, Contract, NoveltyRecord, PromiseRecord

FORMAT = 2

Temperature: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PrototypeRecord(Contract):
    """A prototype: its child and that child's parent, its training patch, and its weight for its own child."""

    id: int = Field(ge=0)
    parent: str = Field(description="the parent's identity; empty for the root")
    child: str
    source_image: str
    source_box: Box
    source_cell: tuple[int, int] = Field(description="row and column of the cell in the source's feature map")
    weight: FiniteFloat = Field(description="for its own child, less its mean over the nodes that compete with that")
    usual: FiniteFloat | None = Field(
        default=None,
        description="its mean similarity over training pictures below the parent, each child counting the same; null "
        "where it was not measured",
    )
    picture: str = Field(description="the picture's path inside the bundle")


class ListRecord(Contract):
    """A named list of what can be in a picture; see `protoserve.restriction.restriction_of`."""

    allow: list[str] = Field(default=[])
    deny: list[str] = Field(default=[])
    depth: dict[str, int] = Field(default={})
    prior: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})


class GraphRecord(Contract):
    """The graph's sizes (cells of the feature map, prototypes, evidence per level) and its similarity."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    prototypes: int = Field(ge=1)
    top_k: int = Field(ge=1)
    similarity: str
    epsilon: FiniteFloat
    zero: FiniteFloat | None = Field(default=None, description="squared distance at which the similarity is 0")
    centred: bool = Field(
        default=False,
        description="whether the graph's own contributions are centred, and it gives evidence against; bundles of "
        "format 1 are not",
    )
    smoothing: int = Field(
        default=1,
        ge=1,
        validation_alias=AliasChoices("smoothing", "span"),
        description="each cell's features are the mean of smoothing × smoothing cells around it",
    )
    tile: int | None = Field(
        default=None,
        ge=1,
        description="side in pixels of the square tiles of the input that the backbone sees, each alone, one per cell; "
        "null if it sees the whole input at once",
    )
    tile_step: int | None = Field(default=None, ge=1, description="pixels from one tile to the next")
    tile_start: int = Field(
        default=0, description="pixel at which the first tile starts; below 0 if it reaches beyond the input"
    )

    reach: tuple[int, int] | None = Field(
        default=None,
        description="pixels above and below, and left and right of a cell's centre that hold 90 % of the gradient of a "
        "similarity, measured on pictures at export; null with tiles, whose boxes are exact",
    )

    @property
    def cells(self) -> Cells:
        """The cells of the feature map, from which boxes follow."""
        return Cells(self.rows, self.columns, self.smoothing, self.tile, self.tile_step, self.reach, self.tile_start)


class RoutingRecord(Contract):
    """Whether the routed graph pays, as timed on the machine of the export; see `export.routing`."""

    ratio: float = Field(
        gt=0,
        allow_inf_nan=False,
        description="time of a request with the routed graph, and the full one where that must answer, divided by the "
        "full graph's alone; one picture and one CPU thread",
    )
    requests: int = Field(ge=1, description="requests timed in each way, in turns")
    routed: float = Field(ge=0, le=1, description="share of the requests that the routed graph answered alone")
    kept: bool = Field(description="whether it was quick enough to become part of the bundle")


class Manifest(Contract):
    """Everything that a reader needs in addition to the graph. `version` is a hash of the bundle's other content, but
    for the times in `routing`."""

    format: int = Field(ge=1)
    name: PlainText
    version: PlainText
    kind: Literal["hierarchical", "flat", "autoencoder"]
    taxonomy: dict[str, Any]
    input: InputRule
    graph: GraphRecord
    files: dict[str, str] = Field(description="target name → file, for example onnx → model.onnx")
    prototypes: list[PrototypeRecord]
    samples: list[str] = Field(default=[], description="pictures to try, as files inside the bundle")
    weights: str | None = Field(
        default=None,
        description="a NumPy file, float32: for each prototype in turn, its last-layer weights for all nodes of its "
        "child's group, in the taxonomy's order",
    )
    prior: dict[str, FiniteFloat] = Field(default={}, description="node → its logit where every similarity is usual")
    temperature: dict[str, Temperature] = Field(default={}, description="parent → softmax temperature")
    novelty: NoveltyRecord | None = None
    promise: PromiseRecord | None = Field(
        default=None, description="what the bundle promises about its answers; null for bundles of older versions"
    )
    lists: dict[str, ListRecord] = Field(
        default={}, description="name → what can be in a picture, for requests that name it (`protoserve lists`)"
    )
    truth: TruthCard | None = Field(default=None, description="what `protoserve audit --write` measured")
    curation: list[CurationLink] = Field(
        default=[], description="what `protoserve curate` has done to this bundle and its ancestors, oldest first"
    )
    routing: RoutingRecord | None = Field(
        default=None, description="whether the routed graph pays; null where the export did not have to find out"
    )
    metrics: Metrics = Field(default_factory=Metrics)
    provenance: Provenance = Field(default_factory=Provenance)

    @property
    def left_out(self) -> dict[str, str]:
        """The leaves left out of training → their folders, needed to read the model's data set."""
        return self.provenance.left_out

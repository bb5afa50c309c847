"""Response documents of the routes besides `POST /v1/predict`, as frozen pydantic models."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from protoserve.bundle.curation import CurationLink
from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.bundle.manifest import ListRecord
from protoserve.bundle.truth_card import TruthCard
from protoserve.images.geometry import InputRule
from protoserve.schema import Contract, EvidenceSource, Prediction, PromiseRecord
from service.contract.problems import ProblemDocument
from service.settings import Settings

PAGE_SIZE: Final = 100
# Cache-Control of answers that depend on the request, and of those that depend only on the model.
NO_STORE: Final = {"Cache-Control": "no-store"}
REVALIDATE: Final = {"Cache-Control": "no-cache"}


_TILE: Final = "side in the model's pixels of the square from which each cell is computed alone; null without tiles"
_TILE_START: Final = "the model's pixel at which the first tile starts; below 0 if it reaches beyond the picture"
_TILE_STEP: Final = "the model's pixels from one tile to the next; null without tiles"


class LimitsDocument(Contract):
    """Limits of a request."""

    request_bytes: int
    image_pixels: int
    image_side: int = Field(description="longest side of an image, in pixels")
    batch_images: int


class CuratedDocument(Contract):
    """A prototype that people have switched off or insist on: who did so, when and why."""

    prototype: int
    node: str = Field(description="the node that it is evidence for")
    reason: str
    by: str
    at: str = Field(description="the time in UTC, ISO 8601")


class MemberDocument(Contract):
    """One bundle of an ensemble."""

    name: str
    version: str
    first_prototype: int = Field(description="the id of its first prototype; its ids are consecutive")
    prototypes: int
    rows: int = Field(description="rows of its feature map and of its evidence maps")
    columns: int
    tile: int | None = Field(default=None, description=_TILE)
    tile_step: int | None = Field(default=None, description=_TILE_STEP)
    tile_start: int = Field(default=0, description=_TILE_START)
    metrics: dict[str, object] = Field(description="its scores on its own validation and test data")
    truth: TruthCard | None = Field(description="its truth card; null if it was not audited")


class ModelDocument(Contract):
    """The model that answers: its size, its input, its limits and its scores."""

    name: str
    version: str
    kind: Literal["hierarchical", "flat", "autoencoder"]
    device: str
    graph: Literal["routed", "full"] = Field(
        description="`routed`: the routed graph answers where its certificate holds and the request needs no other "
        "nodes, the full graph elsewhere; `full`: the full graph alone"
    )
    nodes: int
    leaves: int
    depth: int = Field(description="levels of the taxonomy")
    prototypes: int
    top_k: int = Field(description="the most evidence per level that a request can ask for")
    rows: int = Field(description="rows of the feature map and of evidence maps; in an ensemble, the largest member's")
    columns: int
    tile: int | None = Field(default=None, description=f"{_TILE}; in an ensemble, see `members`")
    tile_step: int | None = Field(default=None, description=_TILE_STEP)
    tile_start: int = Field(default=0, description=_TILE_START)
    input: InputRule
    formats: list[str]
    limits: LimitsDocument
    metrics: dict[str, object] = Field(description="the model's scores on its own validation and test data")
    samples: int = Field(description="sample pictures to try, at v1/samples/0, v1/samples/1, …")
    truth: TruthCard | None = Field(
        description="what `protoserve audit --write` measured about the evidence; null if the bundle was not audited, "
        "and for an ensemble, whose members have their own"
    )
    promise: PromiseRecord | None = Field(
        description="what the model promises about its answers; null for an ensemble, and for bundles of older versions"
    )
    lists: dict[str, ListRecord] = Field(description="the lists that a request can name, and what each allows")
    off: list[CuratedDocument] = Field(
        description="prototypes that are switched off: they count as usual, whatever a picture shows"
    )
    required: list[CuratedDocument] = Field(description="prototypes without which a picture is not known as their node")
    members: list[MemberDocument] | None = Field(description="the bundles of an ensemble; null for a single bundle")


class NodeDocument(Contract):
    """One node of the taxonomy; `node` is its path, which identifies it."""

    node: str
    label: str
    level: int = Field(ge=1)
    parent: str | None = Field(description="null at level 1")
    leaf: bool
    prototypes: int = Field(description="number of its prototypes")


class TaxonomyDocument(Contract):
    """The taxonomy, breadth first."""

    depth: int
    nodes: list[NodeDocument]


class PrototypeDocument(Contract):
    """One prototype: its node, its weight for that node, its usual similarity, and its training patch."""

    id: int
    member: int | None = Field(description="index of its bundle in the model's `members`; null for a single bundle")
    node: str = Field(description="the node that it is evidence for")
    parent: str | None = Field(description="parent of that node; null at level 1")
    weight: float = Field(description="for that node, less its mean over the siblings")
    usual: float | None = Field(
        description="its mean similarity over training pictures below the parent, each child counting the same; null "
        "where it was not measured"
    )
    off: CuratedDocument | None = Field(description="who switched it off, and why; null if it is on")
    required: CuratedDocument | None = Field(description="who insists on it, and why; null if nobody does")
    source: EvidenceSource


class PrototypePage(Contract):
    """Prototypes ordered by id, and the `cursor` of the next page, null on the last page."""

    prototypes: list[PrototypeDocument]
    cursor: str | None


class BatchItem(Contract):
    """The answer to one image: a prediction or a problem; the other is null."""

    prediction: Prediction | None = None
    problem: ProblemDocument | None = None


class BatchDocument(Contract):
    """The answers to the images of a batch, in the order of the request."""

    results: list[BatchItem]


def model_document(
    bundle: Model, device: str, settings: Settings, graph: Literal["routed", "full"] = "full"
) -> ModelDocument:
    """Describe the model of `bundle`, its device, the `graph` in use and the limits in `settings`."""
    taxonomy, (rows, columns) = bundle.taxonomy, bundle.grid
    return ModelDocument(
        name=bundle.name,
        version=bundle.version,
        kind=bundle.kind,
        device=device,
        graph=graph,
        nodes=len(taxonomy.nodes),
        leaves=len(taxonomy.leaves),
        depth=taxonomy.depth,
        prototypes=len(bundle.prototypes),
        top_k=bundle.top_k,
        rows=rows,
        columns=columns,
        tile=None if isinstance(bundle, Ensemble) else bundle.manifest.graph.tile,
        tile_step=None if isinstance(bundle, Ensemble) else bundle.manifest.graph.tile_step,
        tile_start=0 if isinstance(bundle, Ensemble) else bundle.manifest.graph.tile_start,
        input=bundle.input,
        formats=list(settings.formats),
        limits=LimitsDocument(
            request_bytes=settings.max_bytes,
            image_pixels=settings.max_pixels,
            image_side=settings.max_side,
            batch_images=settings.max_images,
        ),
        metrics=bundle.metrics.model_dump(),
        samples=bundle.samples,
        truth=None if isinstance(bundle, Ensemble) else bundle.manifest.truth,
        promise=None if isinstance(bundle, Ensemble) else bundle.manifest.promise,
        lists={} if isinstance(bundle, Ensemble) else bundle.manifest.lists,
        off=[_curated(bundle, *item) for item in sorted(bundle.curation.off.items())],
        required=[_curated(bundle, *item) for item in sorted(bundle.curation.required.items())],
        members=_members(bundle) if isinstance(bundle, Ensemble) else None,
    )


def _curated(bundle: Model, prototype: int, link: CurationLink) -> CuratedDocument:
    node = bundle.prototypes[prototype].child
    return CuratedDocument(prototype=prototype, node=node, reason=link.reason, by=link.by, at=link.at)


def _members(ensemble: Ensemble) -> list[MemberDocument]:
    return [
        MemberDocument(
            name=member.name,
            version=member.version,
            first_prototype=first,
            prototypes=len(member.prototypes),
            rows=member.manifest.graph.rows,
            columns=member.manifest.graph.columns,
            tile=member.manifest.graph.tile,
            tile_step=member.manifest.graph.tile_step,
            tile_start=member.manifest.graph.tile_start,
            metrics=member.manifest.metrics.model_dump(),
            truth=member.manifest.truth,
        )
        for first, member in zip(ensemble.first_prototypes, ensemble.members, strict=True)
    ]


def taxonomy_document(bundle: Model) -> TaxonomyDocument:
    """Describe the taxonomy of `bundle`, with the number of prototypes of each node."""
    taxonomy = bundle.taxonomy
    counts = dict.fromkeys(taxonomy.names, 0)
    for record in bundle.prototypes:
        counts[record.child] += 1
    leaves = frozenset(taxonomy.leaves)
    parents = taxonomy.parent.tolist()
    return TaxonomyDocument(
        depth=taxonomy.depth,
        nodes=[
            NodeDocument(
                node=name,
                label=path[-1],
                level=len(path),
                parent=taxonomy.names[parents[index]] if len(path) > 1 else None,
                leaf=index in leaves,
                prototypes=counts[name],
            )
            for index, (name, path) in enumerate(zip(taxonomy.names, taxonomy.nodes, strict=True))
        ],
    )


def prototype_document(bundle: Model, prototype: int) -> PrototypeDocument:
    """Describe the prototype with the id `prototype`, which must exist."""
    record, curation = bundle.prototypes[prototype], bundle.curation
    off, required = (links.get(prototype) for links in (curation.off, curation.required))
    return PrototypeDocument(
        id=record.id,
        member=bundle.member_of(prototype),
        node=record.child,
        parent=record.parent or None,
        weight=record.weight,
        usual=record.usual,
        off=None if off is None else _curated(bundle, prototype, off),
        required=None if required is None else _curated(bundle, prototype, required),
        source=EvidenceSource(image=record.source_image, box=record.source_box, href=prototype_href(prototype)),
    )


def prototype_href(prototype: int) -> str:
    """Return the address of the image of the prototype with the id `prototype`, relative to the service's own.

    Relative, because a proxy may put a prefix before it.
    """
    return f"v1/prototypes/{prototype}/image"

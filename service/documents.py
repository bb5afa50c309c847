"""What the other routes answer, as frozen pydantic models: the model, its taxonomy, prototypes, batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.bundle.folder import InputRule
from protoserve.schema import Contract, EvidenceSource, Prediction
from service.problems import ProblemDocument
from service.settings import Settings

PAGE = 100


class LimitsDocument(Contract):
    """The largest request that is read."""

    request_bytes: int
    image_pixels: int
    image_side: int = Field(description="either side of a picture, in pixels")
    batch_images: int


class MemberDocument(Contract):
    """One bundle of an ensemble."""

    name: str
    version: str
    first_prototype: int = Field(description="the id of its first prototype; the next member's begin after its last")
    prototypes: int
    rows: int = Field(description="of its feature map, so of its evidence maps")
    columns: int
    metrics: dict[str, object] = Field(description="its own scores on its own validation and test data")


class ModelDocument(Contract):
    """The model that answers, what it takes, and how it scored."""

    name: str
    version: str
    kind: Literal["hierarchical", "flat", "autoencoder"]
    device: str
    nodes: int
    leaves: int
    depth: int = Field(description="the taxonomy's levels")
    prototypes: int
    top_k: int = Field(description="the most evidence per level that can be asked for")
    rows: int = Field(description="of the feature map, so of an evidence map; of an ensemble the greatest")
    columns: int
    input: InputRule
    formats: list[str]
    limits: LimitsDocument
    metrics: dict[str, object] = Field(description="the model's scores on its own validation and test data")
    members: list[MemberDocument] | None = Field(description="the bundles that answer together; null for a single one")


class NodeDocument(Contract):
    """One node of the class tree; `node` is its path and identity."""

    node: str
    label: str
    level: int = Field(ge=1)
    parent: str | None = Field(description="null at level 1")
    leaf: bool
    prototypes: int = Field(description="how many prototypes belong to it")


class TaxonomyDocument(Contract):
    """The class tree, breadth first."""

    depth: int
    nodes: list[NodeDocument]


class PrototypeDocument(Contract):
    """One prototype: whose it is, what it weighs for that node, and the training patch it is."""

    id: int
    member: int | None = Field(description="its bundle, a place in the model's `members`; null for a single bundle")
    node: str = Field(description="the node it speaks for")
    parent: str | None = Field(description="among whose children it was learned; null for the root")
    weight: float
    source: EvidenceSource


class PrototypePage(Contract):
    """Some prototypes in the order of their ids, and the `cursor` of the next page, null on the last."""

    prototypes: list[PrototypeDocument]
    cursor: str | None


class BatchItem(Contract):
    """One picture's answer: a prediction or a problem, the other being null."""

    prediction: Prediction | None = None
    problem: ProblemDocument | None = None


class BatchDocument(Contract):
    """The answers to the pictures of a batch, in the order sent."""

    results: list[BatchItem]


def model_document(bundle: Model, device: str, settings: Settings) -> ModelDocument:
    """Describe the model of `bundle` as it runs on `device` within the service's limits."""
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    return ModelDocument(
        name=manifest.name,
        version=manifest.version,
        kind=manifest.kind,
        device=device,
        nodes=len(taxonomy.nodes),
        leaves=len(taxonomy.leaves),
        depth=taxonomy.depth,
        prototypes=len(manifest.prototypes),
        top_k=manifest.graph.top_k,
        rows=manifest.graph.rows,
        columns=manifest.graph.columns,
        input=manifest.input,
        formats=list(settings.formats),
        limits=LimitsDocument(
            request_bytes=settings.max_bytes,
            image_pixels=settings.max_pixels,
            image_side=settings.max_side,
            batch_images=settings.max_images,
        ),
        metrics=manifest.metrics.model_dump(),
        members=_members(bundle) if isinstance(bundle, Ensemble) else None,
    )


def _members(ensemble: Ensemble) -> list[MemberDocument]:
    return [
        MemberDocument(
            name=member.manifest.name,
            version=member.manifest.version,
            first_prototype=start,
            prototypes=len(member.manifest.prototypes),
            rows=member.manifest.graph.rows,
            columns=member.manifest.graph.columns,
            metrics=member.manifest.metrics.model_dump(),
        )
        for start, member in zip(ensemble.starts, ensemble.members, strict=True)
    ]


def taxonomy_document(bundle: Model) -> TaxonomyDocument:
    """The class tree of `bundle` with each node's number of prototypes."""
    taxonomy = bundle.taxonomy
    counts = dict.fromkeys(taxonomy.names, 0)
    for record in bundle.manifest.prototypes:
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
                parent=taxonomy.names[parents[number]] if len(path) > 1 else None,
                leaf=number in leaves,
                prototypes=counts[name],
            )
            for number, (name, path) in enumerate(zip(taxonomy.names, taxonomy.nodes, strict=True))
        ],
    )


def prototype_document(bundle: Model, prototype: int) -> PrototypeDocument:
    """Describe one prototype; `prototype` is a valid id."""
    record = bundle.manifest.prototypes[prototype]
    return PrototypeDocument(
        id=record.id,
        member=bundle.member_of(prototype),
        node=record.child,
        parent=record.parent or None,
        weight=record.weight,
        source=EvidenceSource(
            image=record.source_image, box=record.source_box, href=f"/v1/prototypes/{record.id}/image"
        ),
    )

"""The JSON contract: what `predict --json` prints and `POST /v1/predict` answers, as frozen pydantic models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr

if TYPE_CHECKING:
    from protoserve.pages.crops import Pictures

NoveltyScore = Literal["energy", "similarity", "own-similarity", "probability", "support"]
Probability = Annotated[float, Field(ge=0.0, le=1.0 + 1e-6)]
Box = Annotated[
    tuple[int, int, int, int],
    Field(description="left, top, right, bottom in pixels; right and bottom are exclusive"),
]


class Contract(BaseModel):
    """The base of all records: frozen, and it rejects unknown keys, so that a typo in a stored document is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class MemberReference(Contract):
    """One bundle of an ensemble: its name and content version (`sha256:…`)."""

    name: str
    version: str


class ModelReference(Contract):
    """The model that made the prediction: its name and content version (`sha256:…`)."""

    name: str
    version: str
    members: list[MemberReference] | None = Field(
        default=None, description="the bundles of an ensemble; null for a single bundle"
    )


class ImageSize(Contract):
    """The sender's picture: its size after its EXIF orientation is applied, in pixels, and what identifies it."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    sha256: str | None = Field(
        default=None,
        description="of the bytes that were sent, in hexadecimal; null for a picture that came as pixels in Python",
    )
    drafted: bool = Field(
        default=False, description="whether a setting for speed (PROTOSERVE_JPEG_DRAFT) changed how it was decoded"
    )


class Alternative(Contract):
    """Another node of the same level, with its unconditional probability."""

    node: str
    label: str
    probability: Probability


class EvidenceSource(Contract):
    """The training patch of a prototype: the image's id, and the patch's box in that image's pixels."""

    image: str
    box: Box
    href: str | None = Field(
        default=None,
        description="the address of the picture, relative to that of the service (not to that of the request); null "
        "without a service",
    )


class Evidence(Contract):
    """One prototype: where it is most similar, how similar, and what it added to the node's logit or took from it."""

    prototype: int = Field(ge=0)
    similarity: float
    usual: float = Field(
        default=0.0,
        description="the prototype's mean similarity over training pictures below the node's parent, each child "
        "counting the same",
    )
    weight: float = Field(description="for the node, less its mean over the siblings")
    contribution: float = Field(description="weight × (similarity − usual)")
    member: int | None = Field(
        default=None, description="the prototype's bundle, an index of `model.members`; null for a single bundle"
    )
    box: Box = Field(
        description="the most similar cell, in the sender's pixels; with tiles, all pixels that count for the "
        "similarity"
    )
    seen: Box | None = Field(
        default=None,
        description="the region that holds 90 % of the similarity's gradient, measured at export; null with tiles, "
        "where `box` is exact, and for bundles of format 1",
    )
    map: list[list[float]] | None = Field(
        default=None,
        description="similarity at every cell, rows from top to bottom; only with maps=heat, and in an ensemble only "
        "for members that predicted this node themselves",
    )
    source: EvidenceSource | None = None


class Level(Contract):
    """The predicted node at one level, with the evidence for it against its siblings.

    `conditional` is the probability given the parent; `forced` marks an only child (conditional 1, no evidence).
    `logit` = `prior` + the contributions in `evidence` + those in `against` + `rest`, exactly. `logit`, `prior` and
    `rest` are null where a node has no head of its own (an only child, or an inner node of a flat model).
    """

    level: int = Field(ge=1)
    node: str
    label: str
    probability: Probability
    conditional: Probability
    forced: bool = False
    known: bool | None = Field(
        default=None,
        description="whether the picture is of a class that the taxonomy contains, down to this level; null if the "
        "bundle has no novelty thresholds",
    )
    alternatives: list[Alternative] = []
    logit: float | None = None
    prior: float | None = Field(default=None, description="the logit where every similarity is usual")
    rest: float | None = Field(default=None, description="the contributions of all prototypes that are not shown")
    evidence_share: float | None = Field(
        default=1.0,
        description="the shown part of all positive contributions; 1 where there are none; null only for bundles that "
        "were exported without their last-layer weights",
    )
    sufficient: int | None = Field(
        default=None,
        ge=0,
        description="the fewest prototypes from whose similarities the node follows, that is, its logit exceeds every "
        "sibling's whatever the other similarities might be within their bounds; null where no top_k suffice, where a "
        "node has no head of its own, and for bundles that were exported without their last-layer weights",
    )
    evidence: list[Evidence] = Field(
        default=[],
        description="prototypes that speak for the node, by falling contribution; one that is less similar than usual "
        "counts 1 % of it in the order, because its best cell shows nothing",
    )
    against: list[Evidence] = Field(
        default=[],
        description="prototypes that speak against the node, the strongest first, in the same order",
    )


class Answer(Contract):
    """The deepest node of the path at which the stated precision still holds; see docs/acting.md.

    `reason` is `confident` where the path ends; `stops: as deep as asked` where the request's `depth` ends it; `only
    allowed child` where the request's restriction alone decides the node; `stops: below 0.95` where the next node's
    probability is too low; `stops: unknown below Apple` where the picture is like none of its classes; and `stops: too
    few pictures for 0.95` where the bundle can't promise that precision, so that only what the restriction decides is
    answered.
    """

    node: str | None = Field(description="null if even level 1 is too uncertain")
    level: int = Field(ge=0, description="0 without a node")
    precision: float = Field(gt=0, lt=1, description="the share of such answers that is right")
    reason: str


class Unrestricted(Contract):
    """The answer that the restriction of a request replaced."""

    path: list[str]
    probability: Probability = Field(description="of the path's leaf, without the restriction")


class RestrictionEffect(Contract):
    """What a request's restriction (`allow`, `deny`, `depth`, `prior`, `list`) did to the prediction."""

    excluded: Probability = Field(description="the probability that the picture gives to what the restriction excludes")
    contradicted: bool = Field(description="whether that is more than half: the picture speaks against the restriction")
    unrestricted: Unrestricted | None = Field(description="the path without the restriction, where it is another")


class ContrastEvidence(Contract):
    """One prototype that tells two nodes apart: what it added to the logit of each."""

    prototype: int = Field(ge=0)
    child: str = Field(description="the node whose prototype it is")
    similarity: float
    usual: float = Field(description="as in `Evidence`")
    found: bool = Field(description="whether it is more similar than usual")
    predicted: float = Field(description="its contribution to the node that is predicted")
    instead: float = Field(description="its contribution to the other node")
    difference: float = Field(description="`predicted` − `instead`: what it adds to the lead of the predicted node")
    member: int | None = Field(default=None, description="as in `Evidence`")
    box: Box = Field(description="as in `Evidence`: the best place there is, also where it was not found")
    seen: Box | None = Field(default=None, description="as in `Evidence`")
    source: EvidenceSource


class ContrastNode(Contract):
    """A node of the other path, from the level at which the paths part."""

    level: int = Field(ge=1)
    node: str
    label: str
    probability: Probability
    conditional: Probability


class Contrast(Contract):
    """Why the predicted path and not the path to `node`.

    `logit_difference` = `prior_difference` + the differences in `evidence` and `missing` + `rest`, exactly. Where the
    `relation` is not `beside`, there is nothing to compare: all numbers are null and all lists empty.
    """

    node: str = Field(description="the node that the request asked about")
    relation: Literal["beside", "predicted", "below"] = Field(
        description="`beside`: its path parts from the predicted path; `predicted`: it is on the predicted path; "
        "`below`: the predicted path ends above it"
    )
    level: int | None = Field(default=None, ge=1, description="the level at which the two paths part")
    predicted: str | None = Field(
        default=None,
        description="the predicted node that is compared: at that level or, where all leaves compete at once (flat "
        "models and autoencoders), the predicted leaf",
    )
    instead: str | None = Field(
        default=None,
        description="the node that it is compared with: that of the other path at that level or, where all leaves "
        "compete at once, the most probable leaf below `node`",
    )
    logit_difference: float | None = None
    prior_difference: float | None = None
    rest: float | None = Field(default=None, description="the differences of all prototypes that are not shown")
    evidence: list[ContrastEvidence] = Field(
        default=[], description="at most top_k prototypes that tell the nodes apart, the largest difference first"
    )
    missing: list[ContrastEvidence] = Field(
        default=[],
        description="at most top_k prototypes of `instead` that were not found, the largest difference first; "
        "`evidence` does not repeat them",
    )
    path: list[ContrastNode] = Field(default=[], description="the path to `node`, from the level at which it parts")


@dataclass(frozen=True)
class Showing:
    """Where a notebook finds the pictures of a prediction: `pictures` opens them, or returns None where they are gone.

    They are no part of the prediction: any two are equal, and pickled predictions leave them behind.
    """

    pictures: Callable[[], Pictures | None] = field(default=lambda: None, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Showing, ()


class Prediction(Contract):
    """A prediction at every level down to the most probable leaf, with its evidence.

    Model, picture and options determine all the rest, so that `protoserve verify` can make the same prediction again.
    """

    id: str | None = Field(
        default=None,
        description="identifies the answer: a hash of the model's version, the picture and the options, so that equal "
        "requests have equal ids; null where the picture has no `sha256`",
    )
    model: ModelReference
    image: ImageSize
    options: dict[str, JsonValue] = Field(
        default={}, description="what the request asked for, by the names of the Python interface"
    )
    path: list[str]
    known_through_level: int | None = Field(
        default=None, ge=0, description="the deepest known level, 0 for none; null without novelty thresholds"
    )
    without: list[int] = Field(
        default=[], description="prototypes left out: the answer is as if they were switched off (`without`)"
    )
    contrast: Contrast | None = Field(default=None, description="why not the node of the parameter `contrast`")
    levels: list[Level]
    answer: Answer | None = Field(
        default=None,
        description="null for an ensemble, for bundles of older versions, which promise nothing, and `without` some "
        "prototypes, with which the promise was made",
    )
    restriction: RestrictionEffect | None = Field(default=None, description="null without a restriction in the request")
    _showing: Showing = PrivateAttr(default_factory=Showing)

    def shown_with(self, pictures: Callable[[], Pictures | None]) -> Self:
        """Return this prediction, which notebooks now show with what `pictures` returns."""
        self._showing = Showing(pictures)
        return self

    # Imported when a person looks: the contract needs no pictures, and its readers no Pillow.

    def _repr_html_(self) -> str:
        """The answer and its evidence for a notebook; without pictures where they are not at hand."""
        from protoserve.pages.answer import notebook_html

        return notebook_html(self, self._showing.pictures())

    def __repr__(self) -> str:
        from protoserve.pages.answer import brief

        return brief(self)

    __str__ = __repr__


class PromiseRecord(Contract):
    """What a bundle promises about its answers (see `protoserve.promise.threshold`).

    Among pictures that get an answer, the stated share is right, with probability `confidence` over the draw of the
    calibration pictures and for pictures drawn like them.
    """

    precision: float = Field(gt=0, lt=1, description="the share that is promised unless a request states another")
    confidence: float = Field(gt=0, lt=1)
    images: int = Field(ge=0, description="the calibration pictures that stand behind it")
    thresholds: dict[str, float | None] = Field(
        description="stated precision → the least probability of an answer; null where the pictures can't promise it"
    )
    least_images: dict[str, int] = Field(
        description="stated precision → the fewest calibration pictures with which it can be promised"
    )
    folder: str = Field(description="the folder with the calibration pictures' scores, inside the bundle")


class NoveltyRecord(Contract):
    """The thresholds for unknown classes: below a parent, a picture whose `score` (see `protoserve.novelty`) is less
    than the threshold is of none of its children.

    The thresholds come from pictures of known classes; the share `true_positive_rate` of those below a parent reaches
    its threshold. A parent without a threshold treats every picture as known.
    """

    score: NoveltyScore
    true_positive_rate: float = Field(gt=0, lt=1)
    thresholds: dict[str, float] = Field(description="parent (empty for the root) → the smallest score that is known")
    images: dict[str, int] = Field(
        default={}, description="parent → the pictures behind its threshold; empty for bundles of older versions"
    )
    pooled: list[str] = Field(
        default=[],
        description="parents with too few pictures for the share, whose thresholds also let the share of the pictures "
        "below all of them together pass",
    )

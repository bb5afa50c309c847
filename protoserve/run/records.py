"""The records in the JSON files of a run: `Metrics`, `Provenance`, `Analysis`, `Confusion` and `Counts`.

A record writes only the fields that were set. So a run that skipped a stage leaves no trace of it in the file, and a
file of an older version, which knew fewer fields, is written again as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from protoserve.schema import Box, Contract, NoveltyRecord, NoveltyScore

Split = Literal["selection", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Rule = Literal["", "duplicates", "purity", "contribution"]


class Record(Contract):
    """Frozen, without unknown keys; only the fields that were set are written."""

    model_config = ConfigDict(
        serialize_by_alias=True, validate_by_name=True, validate_by_alias=True, ser_json_inf_nan="constants"
    )

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        kept = {fields[name].alias or name for name in self.model_fields_set}
        return {name: value for name, value in write(self).items() if name in kept}


# ---- what the stages of training record ------------------------------------------------------------------------------


class SelectionAccuracy(Record):
    """Accuracies on the selection images, in [0, 1]."""

    selection_leaf: float
    selection_level_1: float


class JointRecord(Record):
    """Early stopping of the joint stage: its `best` epoch, numbered from 1, and how many `epochs` it trained."""

    best: SelectionAccuracy
    epoch: int
    epochs: int


class ProjectionRecord(Record):
    """Accuracies before and after the last projection."""

    before: SelectionAccuracy
    after: SelectionAccuracy


class BestEpochRecord(Record):
    """A stage that keeps the weights of its best epoch: accuracies before the stage and after that epoch, which is
    numbered from 1; 0 keeps the weights from before the stage."""

    before: SelectionAccuracy
    after: SelectionAccuracy
    epoch: int


class PrototypeNumbers(Record):
    """Numbers of prototypes before and after pruning."""

    before: int
    after: int


class PruningRecord(Record):
    """Pruning by the published rule: numbers of prototypes and accuracies."""

    prototypes: PrototypeNumbers
    before: SelectionAccuracy
    after: SelectionAccuracy


class CountsRound(Record):
    """A round of the search for the number of prototypes: the rule that removed some (empty in the first round), how
    many are left, and their accuracies."""

    round: int
    rule: Rule
    prototypes: int
    selection_leaf: float
    selection_level_1: float


class Counts(Record):
    """Also `counts.json`. The rounds of the search for the number of prototypes, the index of the round that was
    `picked`, and the loss of leaf accuracy that was tolerated."""

    rounds: list[CountsRound]
    picked: int
    tolerance: float


class PurityRecord(Record):
    """Of the `nearest` training patches of each prototype, the mean share that are of its class, and the share of
    prototypes whose nearest patch is."""

    nearest: int
    mean: float
    nearest_is_own: float


class CalibrationScores(Record):
    """Scores of probabilities, level → score."""

    negative_log_likelihood: dict[str, float]
    expected_calibration_error: dict[str, float]


class CalibrationChange(Record):
    """The scores of a split without temperatures and with them."""

    before: CalibrationScores
    after: CalibrationScores


class CalibrationRecord(Record):
    """Temperatures and the number of images that each comes from, parent → value; the parents' common temperature and
    how far they spread around it; and the scores of each split."""

    temperature: dict[str, float]
    images: dict[str, int]
    common: float
    spread: float
    selection: CalibrationChange | None = None
    validation: CalibrationChange | None = None
    test: CalibrationChange | None = None


class KnownShares(Record):
    """Shares of a split's images, all of known classes, that the novelty thresholds call known: `known_at_parents` over
    all parents that each image lies below, `known_throughout` at every level of the predicted path."""

    known_at_parents: float
    known_throughout: float


class NoveltyThresholds(Record):
    """The novelty thresholds (see `NoveltyRecord`), and what they say of the images of each split."""

    score: NoveltyScore
    true_positive_rate: float
    thresholds: dict[str, float]
    selection: KnownShares | None = None
    validation: KnownShares | None = None
    test: KnownShares | None = None

    def record(self) -> NoveltyRecord:
        """The thresholds alone, as a bundle holds them."""
        return NoveltyRecord(score=self.score, true_positive_rate=self.true_positive_rate, thresholds=self.thresholds)


class AutoencoderRecord(Record):
    """How well an autoencoder draws, and how near prototypes and codes are to each other (see
    `training.outcome.decoded`)."""

    reconstruction_error: float = Field(alias="reconstruction error")
    prototype_to_code: float = Field(alias="prototype to code")
    code_to_prototype: float = Field(alias="code to prototype")
    drawn_prototype_to_picture: float = Field(alias="drawn prototype to picture")


class StageRecords(Record):
    """What the stages of a run record of themselves; None where a stage was not part of the run.

    The only record that changes: each stage assigns its own field.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    joint: JointRecord | None = None
    projection: ProjectionRecord | None = None
    anchored: BestEpochRecord | None = None
    last_layers: BestEpochRecord | None = None
    counts: Counts | None = None
    prune: PruningRecord | None = None
    purity: PurityRecord | None = None
    calibration: CalibrationRecord | None = None
    novelty: NoveltyThresholds | None = None
    autoencoder: AutoencoderRecord | None = None


# ---- metrics.json ----------------------------------------------------------------------------------------------------


class HierarchicalScores(Record):
    """Precision, recall and F1 of the predicted path's nodes (Kiritchenko et al. 2005)."""

    precision: float
    recall: float
    f1: float


class SiblingsScore(Record):
    """The images below a parent, and the accuracy of the choice among its children alone."""

    images: int
    accuracy: float


class Scores(Record):
    """The scores of a data set (see `protoserve.scores.scores`), level → score where there is one per level.

    Runs of older versions hold fewer of them.
    """

    images: int
    accuracy: dict[str, float]
    macro_accuracy: float
    mistake_severity: float | None = None
    hierarchical_distance: float | None = None
    hierarchical: HierarchicalScores | None = None
    negative_log_likelihood: dict[str, float] = Field(default_factory=dict)
    expected_calibration_error: dict[str, float] = Field(default_factory=dict)
    siblings: dict[str, SiblingsScore] = Field(default_factory=dict)


class SplitScores(Record):
    """The scores on every split that a run was scored on."""

    selection: Scores | None = None
    validation: Scores | None = None
    test: Scores | None = None

    def of(self, splits: Iterable[Split] = SPLITS) -> dict[Split, Scores]:
        """The scores on those of `splits` that the run was scored on, in the order given."""
        scores = {split: getattr(self, split) for split in splits}
        return {split: found for split, found in scores.items() if found is not None}


class Metrics(StageRecords, SplitScores):
    """`metrics.json`: the scores on every split, the records of the stages, and the seconds that training took."""

    model_config = ConfigDict(frozen=True)

    seconds: float | None = None


# ---- provenance.json -------------------------------------------------------------------------------------------------


class DataReference(Record):
    """The data set of a run: its folder's name and the fingerprint of its training split."""

    root: str
    fingerprint: str


class ImageNumbers(Record):
    """How many images a run fitted and selected on."""

    fit: int
    selection: int


class ExportRecord(Record):
    """The export that wrote a bundle: package → version."""

    versions: dict[str, str] = Field(default_factory=dict)


class Provenance(Record):
    """`provenance.json`: what a run came from. `left_out` maps the leaves that the run is not to know to their folders;
    whoever reads its data set needs it. A bundle's manifest adds `export`."""

    config: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    data: DataReference | None = None
    left_out: dict[str, str] = Field(default_factory=dict)
    images: ImageNumbers | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    python: str | None = None
    device: str | None = None
    export: ExportRecord | None = None


# ---- analysis.json and confusion.json --------------------------------------------------------------------------------


class PatchSource(Record):
    """The training image that a prototype was cut from, and the box in that image's pixels."""

    image: str
    box: Box


class Purity(Record):
    """How many of a prototype's `nearest` training patches are of its `own` class."""

    own: int
    nearest: int


class Patch(Record):
    """A training patch near a prototype: its image and leaf, its cell, its box in the image's pixels, the squared
    distance, and whether it is of the prototype's `own` class."""

    image: str
    leaf: str
    cell: int
    box: Box
    distance: float
    own: bool


class AnalysedPrototype(Record):
    """A prototype with its nearest training patches, nearest first; `parent` is empty for the root, `weight` counts for
    the prototype's own child."""

    id: int
    child: str
    parent: str
    weight: float
    source: PatchSource
    purity: Purity
    patches: list[Patch]


class AnalysedNode(Record):
    """A node of the taxonomy: its identity (`Fruit/Apple`) and its label (`Apple`)."""

    name: str
    label: str


class Analysis(Record):
    """`analysis.json`: the global analysis of `images` training images, whose feature maps have `rows` × `columns`
    cells. `patches/NNNN.webp` shows a prototype's patches side by side, each `tile` pixels wide."""

    format: int
    kind: Literal["hierarchical", "flat", "autoencoder"]
    images: int
    rows: int
    columns: int
    tile: int
    nodes: list[AnalysedNode]
    prototypes: list[AnalysedPrototype]


# Parent → [true child][predicted child], see `protoserve.scores.sibling_confusion`.
ConfusionTables = dict[str, list[list[int]]]


class Confusion(Record):
    """`confusion.json`: how often siblings were taken for each other, on each split."""

    selection: ConfusionTables | None = None
    validation: ConfusionTables | None = None
    test: ConfusionTables | None = None

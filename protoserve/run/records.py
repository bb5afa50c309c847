"""The records in the JSON files of a run: `Metrics`, `Analysis`, `Confusion` and `Counts`.

A record writes only the fields that were set. So a skipped stage does not appear in the file, and a file of an older
version, which had fewer fields, is rewritten unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field

from protoserve.run.promise_records import AnswerScores, PromiseMetrics
from protoserve.run.record import Record
from protoserve.schema import Box, NoveltyRecord, NoveltyScore

Split = Literal["selection", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Rule = Literal["", "duplicates", "purity", "contribution"]


# ---- what the stages of training record ------------------------------------------------------------------------------


class SelectionAccuracy(Record):
    """Accuracies on the selection images, in [0, 1]."""

    selection_leaf: float
    selection_level_1: float


class JointRecord(Record):
    """Early stopping of the joint stage: the accuracies of its best `epoch`, numbered from 1, and the number of
    `epochs` trained."""

    best: SelectionAccuracy
    epoch: int
    epochs: int


class ProjectionRecord(Record):
    """Accuracies before and after the last projection."""

    before: SelectionAccuracy
    after: SelectionAccuracy


class BestEpochRecord(Record):
    """A stage that keeps the weights of its best `epoch`: accuracies before the stage and after that epoch. Epochs are
    numbered from 1; 0 means that the stage kept the weights from before it."""

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


class ReplacingRecord(Record):
    """How many prototypes that told nothing apart were `replaced`, and the accuracies before and after."""

    replaced: int
    before: SelectionAccuracy
    after: SelectionAccuracy


class CountsRound(Record):
    """A round of the search for the number of prototypes: the `rule` that removed some (empty in the first round), the
    number that remain, and their accuracies."""

    round: int
    rule: Rule
    prototypes: int
    selection_leaf: float
    selection_level_1: float


class Counts(Record):
    """The search for the number of prototypes, also in `counts.json`: its rounds, the index of the `picked` round, and
    the tolerated loss of leaf accuracy."""

    rounds: list[CountsRound]
    picked: int
    tolerance: float


class PurityRecord(Record):
    """The purity of prototypes: the `mean` share of a prototype's `nearest` training patches that are of its class, and
    the share of prototypes whose very nearest patch is of their class."""

    nearest: int
    mean: float
    nearest_is_own: float


class SeparationRecord(Record):
    """How many of a run's `prototypes` tell their class from the siblings by one standard deviation or more
    (`telling`), and how many by less than half of one (`always_on`); see `protoserve.similarity_statistics`."""

    telling: int
    always_on: int
    prototypes: int


class CalibrationScores(Record):
    """Calibration scores, level → score."""

    negative_log_likelihood: dict[str, float]
    expected_calibration_error: dict[str, float]


class CalibrationChange(Record):
    """The scores of a split before and after the temperatures are applied."""

    before: CalibrationScores
    after: CalibrationScores


class CalibrationRecord(Record):
    """The calibration: for each parent, the temperature and the number of images that it was fitted on; the `common`
    temperature of all parents and their `spread` around it; and the scores of each split."""

    temperature: dict[str, float]
    images: dict[str, int]
    common: float
    spread: float
    selection: CalibrationChange | None = None
    validation: CalibrationChange | None = None
    test: CalibrationChange | None = None


class KnownShares(Record):
    """The shares of a split's images, all of known classes, that the novelty thresholds accept as known.

    `known_at_parents` counts every parent above an image's class; `known_throughout` counts images that are known at
    every level of the predicted path.
    """

    known_at_parents: float
    known_throughout: float


class NoveltyThresholds(Record):
    """The novelty thresholds (see `NoveltyRecord`) and their results on each split. Runs of older versions do not say
    how many images stand behind each threshold."""

    score: NoveltyScore
    true_positive_rate: float
    thresholds: dict[str, float]
    images: dict[str, int] = Field(default_factory=dict)
    pooled: list[str] = Field(default_factory=list)
    selection: KnownShares | None = None
    validation: KnownShares | None = None
    test: KnownShares | None = None

    def record(self) -> NoveltyRecord:
        """Return the thresholds alone, as a bundle stores them."""
        return NoveltyRecord(
            score=self.score,
            true_positive_rate=self.true_positive_rate,
            thresholds=self.thresholds,
            images=self.images,
            pooled=self.pooled,
        )


class AutoencoderRecord(Record):
    """An autoencoder's reconstruction error, and the distances between prototypes and codes (see
    `training.outcome.decoded`)."""

    reconstruction_error: float = Field(alias="reconstruction error")
    prototype_to_code: float = Field(alias="prototype to code")
    code_to_prototype: float = Field(alias="code to prototype")
    drawn_prototype_to_picture: float = Field(alias="drawn prototype to picture")


class PlainClassifier(Record):
    """The plain classifier beside the prototypes: a linear softmax on the mean features of the same backbone, trained
    on the same views. Its `accuracy` per level, in [0, 1], on the selection `images`."""

    images: int
    accuracy: dict[str, float]


class StageRecords(Record):
    """The records of a run's stages; None for a stage that the run did not include.

    This is the only mutable record: each stage assigns its own field.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    plain: PlainClassifier | None = None
    joint: JointRecord | None = None
    projection: ProjectionRecord | None = None
    anchored: BestEpochRecord | None = None
    last_layers: BestEpochRecord | None = None
    counts: Counts | None = None
    prune: PruningRecord | None = None
    replacing: ReplacingRecord | None = None
    purity: PurityRecord | None = None
    separation: SeparationRecord | None = None
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
    """The scores of a data set; see `protoserve.scores.scores`. Runs of older versions have fewer of them."""

    images: int
    inner: int = 0
    accuracy: dict[str, float]
    macro_accuracy: float
    mistake_severity: float | None = None
    hierarchical_distance: float | None = None
    hierarchical: HierarchicalScores | None = None
    negative_log_likelihood: dict[str, float] = Field(default_factory=dict)
    expected_calibration_error: dict[str, float] = Field(default_factory=dict)
    siblings: dict[str, SiblingsScore] = Field(default_factory=dict)


class Evaluation(Scores):
    """The result of scoring a model on a split: its scores, those on `novel` images (see
    `training.outcome.novelty_report`), if it was given any, the answers by stated precision, if the run promises one,
    the number of files `passed_over` by reason, and the duration in seconds."""

    novel: dict[str, Any] | None = None
    promise: dict[str, AnswerScores] | None = None
    passed_over: dict[str, int] = Field(default_factory=dict)
    seconds: float


class SplitScores(Record):
    """The scores on each split; None for a split on which the run was not scored."""

    selection: Scores | None = None
    validation: Scores | None = None
    test: Scores | None = None

    def of(self, splits: Iterable[Split] = SPLITS) -> dict[Split, Scores]:
        """Return the scores on those of `splits` on which the run was scored, in the given order."""
        scores = {split: getattr(self, split) for split in splits}
        return {split: value for split, value in scores.items() if value is not None}


class Metrics(StageRecords, SplitScores):
    """`metrics.json`: the scores on each split, the records of the stages, the promise, and the duration of training in
    seconds."""

    model_config = ConfigDict(frozen=True)

    promise: PromiseMetrics | None = None
    seconds: float | None = None


# ---- analysis.json and confusion.json --------------------------------------------------------------------------------


class PatchSource(Record):
    """The training image that a prototype was cut from, the box in that image's pixels, and the `cell` of its feature
    map, row · columns + column. Runs of older versions do not name the cell."""

    image: str
    box: Box
    cell: int | None = None


class Purity(Record):
    """The number of a prototype's `nearest` training patches, and how many of them are of its `own` class."""

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


class Separation(Record):
    """A prototype's mean similarity to pictures of its `own` class and of the `siblings`, the difference in pooled
    standard deviations (`effect`), and whether that is so small that the prototype is `always_on`."""

    own: float
    siblings: float
    effect: float
    always_on: bool


class AnalysedPrototype(Record):
    """A prototype and its nearest training patches, nearest first. `parent` is empty for the root; `weight` is that for
    its own child, less the siblings' mean. In older runs it is as trained, and there is no `separation`."""

    id: int
    child: str
    parent: str
    weight: float
    source: PatchSource
    purity: Purity
    separation: Separation | None = None
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
    """`confusion.json`: the confusion matrices among siblings on each split."""

    selection: ConfusionTables | None = None
    validation: ConfusionTables | None = None
    test: ConfusionTables | None = None

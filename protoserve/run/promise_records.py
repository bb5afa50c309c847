"""The records of the promise in `metrics.json`, and of its scores in an evaluation."""

from __future__ import annotations

from protoserve.run.record import Record
from protoserve.schema import PromiseRecord


class Resplits(Record):
    """How often a promise holds when calibration and scored pictures are drawn anew: in `held` of so many `rounds`. In
    `silent` of these, the calibration pictures promised nothing. `coverage` is the mean share of answered pictures."""

    rounds: int
    held: int
    silent: int
    coverage: float


class AnswerScores(Record):
    """The answers to a split's `images` at one stated precision: by the answer's level (`level_1`, …) and in `all`, how
    many were `answered` and how many of these answers are `right`."""

    images: int
    answered: dict[str, int]
    right: dict[str, int]
    resplits: Resplits | None = None


class PromiseMetrics(Record):
    """The promise (see `protoserve.promise.threshold`): its default `precision`, its `confidence`, the number of
    calibration `images`; by stated precision the threshold, None if none can be promised, and the fewest images that
    could; and the answers to each split by stated precision."""

    precision: float
    confidence: float
    images: int
    thresholds: dict[str, float | None]
    least_images: dict[str, int]
    selection: dict[str, AnswerScores] | None = None
    validation: dict[str, AnswerScores] | None = None
    test: dict[str, AnswerScores] | None = None

    def record(self, folder: str) -> PromiseRecord:
        """Return the promise alone, as a bundle stores it, with the folder of its calibration pictures."""
        return PromiseRecord(
            precision=self.precision,
            confidence=self.confidence,
            images=self.images,
            thresholds=self.thresholds,
            least_images=self.least_images,
            folder=folder,
        )

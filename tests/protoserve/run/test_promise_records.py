"""The promise's records: what a bundle takes from them."""

from __future__ import annotations

from protoserve.run.promise_records import AnswerScores, PromiseMetrics


def test_a_bundle_stores_the_promise_without_its_scores() -> None:
    scores = AnswerScores(images=4, answered={"all": 2}, right={"all": 1})
    metrics = PromiseMetrics(
        precision=0.9,
        confidence=0.95,
        images=50,
        thresholds={"0.9": 0.7, "0.99": None},
        least_images={"0.9": 36, "0.99": 368},
    )
    record = metrics.model_copy(update={"test": {"0.9": scores}}).record("calibration")
    assert record.model_dump() == metrics.model_dump(
        include=set(PromiseMetrics.model_fields) - {"selection", "validation", "test"}
    ) | {"folder": "calibration"}

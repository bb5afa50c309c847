"""Records keep the content of their files: a file that is read and written again is unchanged, whatever its version."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from protoserve.run.records import (
    AutoencoderRecord,
    BestEpochRecord,
    Metrics,
    NoveltyThresholds,
    PurityRecord,
    SelectionAccuracy,
    StageRecords,
)

SCORES: dict[str, Any] = {
    "images": 4,
    "accuracy": {"level_1": 1.0, "leaf": 0.5},
    "macro_accuracy": 0.5,
    "mistake_severity": None,
}
BEFORE: dict[str, Any] = {"selection_leaf": 0.25, "selection_level_1": 0.5}
AFTER: dict[str, Any] = {"selection_leaf": 0.75, "selection_level_1": 1.0}
CALIBRATION = {"negative_log_likelihood": {"leaf": 0.7}, "expected_calibration_error": {"leaf": 0.1}}
METRICS: dict[str, Any] = {
    "selection": SCORES,
    "test": {"images": 4, "accuracy": {"leaf": 0.5}, "macro_accuracy": 0.5},
    "joint": {"best": AFTER, "epoch": 3, "epochs": 5},
    "projection": {"before": BEFORE, "after": AFTER},
    "last_layers": {"before": BEFORE, "after": AFTER, "epoch": 0},
    "counts": {"rounds": [{"round": 0, "rule": "", "prototypes": 9, **AFTER}], "picked": 0, "tolerance": 0.005},
    "prune": {"prototypes": {"before": 9, "after": 7}, "before": BEFORE, "after": AFTER},
    "calibration": {
        "temperature": {"": 1.5},
        "images": {"": 4},
        "common": 1.5,
        "spread": 0.0,
        "test": {"before": CALIBRATION, "after": CALIBRATION},
    },
    "novelty": {
        "score": "probability",
        "true_positive_rate": 0.9,
        "thresholds": {"": 0.25},
        "images": {},
        "pooled": [],
        "selection": {"known_at_parents": 1.0, "known_throughout": 0.5},
    },
    "autoencoder": {
        "reconstruction error": 4.0,
        "prototype to code": 0.1,
        "code to prototype": 0.2,
        "drawn prototype to picture": 3.0,
    },
    "seconds": 1.5,
}


@pytest.mark.parametrize("content", [METRICS, {}, {"test": SCORES}])
def test_metrics_are_written_as_they_were_read(content: dict[str, Any]) -> None:
    metrics = Metrics.model_validate(content)
    assert metrics.model_dump() == content
    assert json.loads(metrics.model_dump_json()) == content


def test_a_score_without_a_value_stays_and_a_stage_that_did_not_run_leaves_no_key() -> None:
    written = Metrics(test=Metrics.model_validate({"test": SCORES}).test).model_dump()
    assert written == {"test": SCORES}
    assert "mistake_severity" in written["test"]


def test_splits_come_in_the_requested_order_without_missing_ones() -> None:
    metrics = Metrics.model_validate(METRICS)
    assert list(metrics.of()) == ["selection", "test"]
    assert list(metrics.of(("test", "validation", "selection"))) == ["test", "selection"]


def test_stages_set_their_own_record_and_checkpoints_keep_it() -> None:
    records = StageRecords()
    before = SelectionAccuracy(**BEFORE)
    records.anchored = BestEpochRecord(before=before, after=before, epoch=0)
    records.purity = PurityRecord(nearest=10, mean=0.5, nearest_is_own=1.0)
    content = records.model_dump()
    assert content == {
        "anchored": {"before": BEFORE, "after": BEFORE, "epoch": 0},
        "purity": {"nearest": 10, "mean": 0.5, "nearest_is_own": 1.0},
    }
    assert StageRecords.model_validate_json(records.model_dump_json()) == records
    assert Metrics(**dict(records)).purity == records.purity


def test_checkpoints_keep_an_infinite_threshold() -> None:
    thresholds = NoveltyThresholds(score="energy", true_positive_rate=0.95, thresholds={"": float("-inf"), "A": 0.5})
    records = StageRecords(novelty=thresholds)
    assert StageRecords.model_validate_json(records.model_dump_json()).novelty == thresholds


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="purty"):
        Metrics.model_validate({"purty": {}})


def test_an_autoencoders_keys_are_those_of_its_table() -> None:
    record = AutoencoderRecord(
        reconstruction_error=4.0, prototype_to_code=0.1, code_to_prototype=0.2, drawn_prototype_to_picture=3.0
    )
    assert record.model_dump() == METRICS["autoencoder"]


def test_a_bundle_holds_the_thresholds_alone() -> None:
    novelty = Metrics.model_validate(METRICS).novelty
    assert novelty is not None
    assert novelty.record().model_dump() == {
        "score": "probability",
        "true_positive_rate": 0.9,
        "thresholds": {"": 0.25},
        "images": {},
        "pooled": [],
    }

"""`parity.json` keeps its shape from version to version."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.records import BatchReport, TargetReport, Tolerance, read_parity, write_parity
from protoserve.errors import BundleError

BATCH = {
    "worst_difference": {"log_probability": 1e-6, "logit": 2e-6},
    "agreement": {"cell": 0.99, "path": 1.0},
    "near_ties": {"cell": 1, "path": 0},
}
TOLERANCE = {"log_probability": 1e-3, "logit": 1e-3, "similarity": 1e-3}
# As older versions wrote it, key by key.
DOCUMENT: dict[str, dict[str, Any]] = {
    "onnx": {"precision": "float32", "pictures": 9, "tolerance": TOLERANCE, "batch_1": BATCH, "batch_3": BATCH},
    "onnx-routed": {
        "precision": "float32",
        "pictures": 9,
        "tolerance": TOLERANCE,
        "resize": {"worst_grey_levels": 1, "pixels_differing": 0.001, "same_path_as_host": 1.0},
        "batch_1": {**BATCH, "certain": 0.5},
    },
    "onnx-int8": {
        "precision": "int8",
        "pictures": 9,
        "tolerance": {"log_probability": 20.0, "logit": 10.0, "similarity": 6.0},
        "batch_2": BATCH,
        "validation": {
            "pictures": 20,
            "accuracy": {"network": {"leaf": 0.9}, "target": {"leaf": 0.895}},
            "loss_points": {"leaf": 0.5},
            "first_evidence_same": {"level_1": 0.97},
        },
    },
}


def test_a_report_of_an_older_version_is_read_and_written_again_byte_for_byte(tmp_path: Path) -> None:
    text = json.dumps(DOCUMENT, indent=1) + "\n"
    (tmp_path / "parity.json").write_text(text)
    reports = read_parity(tmp_path)
    assert list(reports["onnx"].batches) == [1, 3]
    assert reports["onnx-routed"].batches[1].certain == 0.5
    assert reports["onnx"].batches[1].certain is None
    write_parity(tmp_path, reports)
    assert (tmp_path / "parity.json").read_text() == text


def test_a_report_built_in_code_has_the_same_keys() -> None:
    batch = BatchReport.model_validate(BATCH)
    report = TargetReport(
        precision="float32",
        pictures=9,
        tolerance=Tolerance(),
        batches={1: batch, 3: batch},
    )
    assert report.model_dump() == DOCUMENT["onnx"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "Invalid JSON"), ('{"onnx": {"precision": "float32"}}', "pictures"), (None, "can't read it")],
)
def test_a_broken_report_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "parity.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        read_parity(tmp_path)

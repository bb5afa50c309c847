"""Answers of execution providers are timed in turns and compared; providers that do not work are named."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.gpu.answers import SIDES, agreement, answers, sessions, timed
from protoserve.bundle.folder import Bundle, read_bundle


@pytest.fixture(scope="module")
def packaged() -> Bundle:
    return read_bundle("demo")


@pytest.fixture(scope="module")
def pictures(packaged: Bundle) -> NDArray[np.uint8]:
    rule = packaged.input
    return np.random.default_rng(0).integers(0, 255, (3, rule.height, rule.width, 3), dtype=np.uint8)


def test_every_side_is_measured_or_named(packaged: Bundle, pictures: NDArray[np.uint8]) -> None:
    found, missing = sessions(packaged.file("onnx"))
    assert "CPU" in found and set(found) | set(missing) == set(SIDES)
    assert not set(found) & set(missing) and all(missing.values())
    rows = timed({"CPU": found["CPU"]}, pictures, (1, 4), 1)
    assert [(row["side"], row["batch"], row["of_cpu"]) for row in rows] == [("CPU", 1, 1.0), ("CPU", 4, 1.0)]


def test_a_provider_that_no_onnxruntime_has_is_named(packaged: Bundle) -> None:
    found, missing = sessions(packaged.file("onnx"), {"NPU": ["NoSuchExecutionProvider"]})
    assert found == {} and missing == {"NPU": "this onnxruntime has no NoSuchExecutionProvider"}


def test_the_same_answers_agree(packaged: Bundle, pictures: NDArray[np.uint8]) -> None:
    found = answers(sessions(packaged.file("onnx"), {"CPU": SIDES["CPU"]})[0]["CPU"], pictures, batch=2)
    assert len(found["path"]) == len(pictures)
    assert agreement(found, found) == {"probability": 0.0, "path": 1.0, "first_evidence": 1.0, "contribution": 0.0}


def test_what_differs_is_counted() -> None:
    """Two pictures with two levels and two pieces; the second picture's path ends at the first level."""
    ours = {
        "log_probability": np.log([[0.5, 0.5], [0.25, 0.75]]),
        "path": np.array([[0, 2], [1, -1]]),
        "evidence_prototype": np.array([[[4, 5], [6, 7]], [[4, 5], [-1, -1]]]),
        "evidence_contribution": np.array([[[2.0, 1.0], [2.0, 1.0]], [[2.0, 1.0], [0.0, 0.0]]]),
    }
    theirs = {name: values.copy() for name, values in ours.items()}
    theirs["log_probability"][0] = np.log([0.6, 0.4])
    theirs["path"][0, 1] = 3
    # Where the evidence is another, contributions are not compared.
    theirs["evidence_prototype"][0, 1] = [7, 6]
    theirs["evidence_contribution"][0, 1] = [9.0, 9.0]
    theirs["evidence_contribution"][1, 0, 1] = 1.5
    found = agreement(ours, theirs)
    assert found["probability"] == pytest.approx(0.1)
    assert found["path"] == 0.5
    assert found["first_evidence"] == pytest.approx(2 / 3)
    assert found["contribution"] == 0.5

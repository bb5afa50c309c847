"""What feedback may say."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from protoserve.feedback.record import MAX_COMMENT, FeedbackRecord
from tests.protoserve.feedback.records import record


@pytest.mark.parametrize(
    "said",
    [
        {"verdict": "right"},
        {"verdict": "wrong"},
        {"verdict": "wrong", "node": "Fruit/Pear"},
        # It is an apple, but not the kind that the answer said.
        {"verdict": "wrong", "node": "Fruit"},
        {"verdict": "wrong reason", "prototypes": [3, 0]},
    ],
)
def test_every_verdict_has_its_own_fields(said: dict[str, Any]) -> None:
    kept = record(**said)
    assert FeedbackRecord.model_validate_json(kept.model_dump_json()) == kept


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"verdict": "right", "node": "Fruit/Pear"}, "takes no node"),
        ({"verdict": "right", "prototypes": [1]}, "takes no prototypes"),
        ({"verdict": "wrong", "node": "Fruit/Apple"}, "so it is not wrong"),
        ({"verdict": "wrong", "prototypes": [1]}, "say 'wrong reason'"),
        ({"verdict": "wrong reason"}, "give 'prototypes'"),
        ({"verdict": "wrong reason", "prototypes": [1, 1]}, "named twice"),
        ({"verdict": "wrong reason", "prototypes": [-1]}, "greater than or equal to 0"),
        ({"verdict": "bad"}, "'right', 'wrong' or 'wrong reason'"),
        ({"comment": "x" * (MAX_COMMENT + 1)}, f"at most {MAX_COMMENT}"),
        ({"path": []}, "at least 1 item"),
        ({"answer": "xyz"}, "should match pattern"),
        ({"model": "latest"}, "should match pattern"),
        ({"mood": "angry"}, "Extra inputs are not permitted"),
    ],
)
def test_contradictions_are_refused_with_a_cure(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        record(**said)


def test_a_repeated_request_says_the_same_at_another_time() -> None:
    first = record(4)
    assert record(4, at=first.at + timedelta(seconds=9)).said == first.said
    assert record(4, request="another").said != first.said

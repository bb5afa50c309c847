"""The body of feedback: what is refused, and how it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.contract.feedback import parse_feedback
from service.contract.problems import Problem

VALID: dict[str, Any] = {
    "answer": "0" * 32,
    "model": "sha256:" + "0" * 64,
    "image": "0" * 64,
    "path": ["Fruit"],
    "verdict": "right",
}


def test_json_is_read_with_or_without_a_charset() -> None:
    for media_type in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert parse_feedback(media_type, json.dumps(VALID).encode()).predicted == "Fruit"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the feedback: Invalid JSON"),
        (b"[]", "the feedback: Input should be an object"),
        (json.dumps({**VALID, "prototype": [1]}).encode(), "prototype: .*did you mean 'prototypes'"),
        (json.dumps({**VALID, "verdict": "wrong reason"}).encode(), "the feedback: a wrong reason names"),
        (json.dumps({**VALID, "answer": "1"}).encode(), "answer: String should match"),
        (json.dumps({**VALID, "comment": "\ud800"}).encode(), "the feedback: Invalid JSON"),
    ],
)
def test_the_field_and_the_cure_are_named(body: bytes, message: str) -> None:
    with pytest.raises(Problem, match=message) as raised:
        parse_feedback("application/json", body)
    assert raised.value.code == "invalid_feedback"


def test_another_media_type_is_refused() -> None:
    with pytest.raises(Problem, match=r"'text/plain' is not supported .* application/json") as raised:
        parse_feedback("text/plain", b"{}")
    assert raised.value.code == "unsupported_media_type"

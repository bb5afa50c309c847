"""Stored answers, in every form in which they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protoserve.errors import InputError
from protoserve.replay.answers import read_answers

ANSWER: dict[str, Any] = {"model": {}, "image": {}, "path": ["Fruit"], "levels": []}


@pytest.mark.parametrize(
    ("document", "count"),
    [
        (ANSWER, 1),
        ([ANSWER, ANSWER], 2),
        ({"results": [{"prediction": ANSWER, "problem": None}, {"prediction": None, "problem": {}}]}, 1),
    ],
)
def test_answers_are_read(tmp_path: Path, document: Any, count: int) -> None:
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(document))
    assert read_answers(file) == [ANSWER] * count


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "holds no answer"),
        ('{"code": "overloaded"}', "not an answer"),
        ("3", "not an answer"),
        ('{"results": 5}', "not an answer"),
        ('{"results": [3]}', "not an answer"),
        ('{"model": {}, "image": 3, "path": [], "levels": []}', "not an answer .image"),
        ('{"model": {}, "image": {}, "path": [], "levels": [{"level": 1, "evidence": [{}]}]}', "levels.0.evidence.0"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "answer.json"
    file.write_text(content)
    with pytest.raises(InputError, match=said):
        read_answers(file)

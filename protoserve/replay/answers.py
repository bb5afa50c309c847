"""Reads stored answers: of `predict --json`, of the service, and of its batches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from protoserve.errors import InputError
from protoserve.names import one_line


class _Piece(BaseModel):
    prototype: int
    contribution: float


class _Alternative(BaseModel):
    node: str
    probability: float


class _Level(BaseModel):
    level: int
    evidence: list[_Piece] = []
    against: list[_Piece] = []
    alternatives: list[_Alternative] = []


class _Answer(BaseModel):
    """What every answer has, of whatever version; other fields are not looked at."""

    model: dict[str, Any]
    image: dict[str, Any]
    path: list[str]
    levels: list[_Level]
    options: dict[str, Any] = {}


def read_answers(file: Path) -> list[dict[str, Any]]:
    """Read the answers of a JSON file: one, a list of them, or the `results` of a batch, without its problems.

    Raises InputError for a file that can't be read or holds something else.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: can't read it ({error.strerror}); give the JSON of an answer") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error}); give what 'predict --json' or the service answered") from error
    if isinstance(document, dict) and isinstance(document.get("results"), list):
        results = [item if isinstance(item, dict) else {"prediction": item} for item in document["results"]]
        document = [item["prediction"] for item in results if item.get("prediction") is not None]
    answers = document if isinstance(document, list) else [document]
    if not answers:
        raise InputError(f"{file}: holds no answer; give what 'predict --json' or the service answered")
    return [checked_answer(answer, f"{file}: ") for answer in answers]


def checked_answer(answer: Any, origin: str = "") -> dict[str, Any]:
    """Return an answer as it is; raises InputError, which begins with `origin`, for what is not one."""
    try:
        _Answer.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise InputError(
            one_line(
                f"{origin}not an answer ({place}: {first['msg']}); give what 'predict --json' or the service answered"
            )
        ) from error
    assert isinstance(answer, Mapping)
    return dict(answer)

"""Reads stored answers: of `predict --json`, of the service, and of its batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protoserve.errors import InputError


def read_answers(file: Path) -> list[dict[str, Any]]:
    """Read the answers of a JSON file: one, a list of them, or the `results` of a batch, without its problems.

    Raises InputError for a file that can't be read or holds no answer.
    """
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: can't read it ({error.strerror}); give the JSON of an answer") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error}); give what 'predict --json' or the service answered") from error
    if isinstance(document, dict) and "results" in document:
        document = [item["prediction"] for item in document["results"] if item.get("prediction") is not None]
    answers = document if isinstance(document, list) else [document]
    for answer in answers:
        if not isinstance(answer, dict) or not {"model", "image", "path", "levels"} <= set(answer):
            raise InputError(f"{file}: holds something that is not an answer; give what 'predict --json' printed")
    if not answers:
        raise InputError(f"{file}: holds no answer; give what 'predict --json' or the service answered")
    return answers

"""Reads an answer from a Parquet file of `protoserve score`. Needs the extra `score` (pyarrow)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from protoserve.errors import InputError, MissingExtraError

# The key of the file's metadata that holds the options of all its answers, as JSON.
OPTIONS: Final = b"protoserve.options"
SUFFIX: Final = ".parquet"


def read_scored(file: Path, sha256: str | None) -> dict[str, Any]:
    """Read the answer to the picture with this SHA-256, as JSON; it has what the file keeps of an answer.

    Raises InputError for a file that is not of `protoserve score`, that an older version wrote, or that has no answer
    to the picture, and MissingExtraError without pyarrow.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading the files of 'protoserve score'", "score") from error
    try:
        with file.open("rb") as stream:
            schema = parquet.read_schema(stream)
        options = (schema.metadata or {}).get(OPTIONS)
        if options is None or "sha256" not in schema.names:
            raise InputError(
                f"{file}: does not say by which options its answers were made; score the pictures again with this "
                "version"
            )
        with file.open("rb") as stream:
            rows = parquet.read_table(stream, filters=[("sha256", "=", sha256)]).slice(0, 1).to_pylist()
    except OSError as error:
        raise InputError(f"{file}: can't read it ({error.strerror or error}); give the file of 'score'") from error
    except pyarrow.ArrowException as error:
        raise InputError(f"{file}: not a Parquet file ({error}); give the file of 'protoserve score'") from error
    if not rows:
        raise InputError(f"{file}: has no answer to this picture (SHA-256 {sha256})")
    return answer_of(rows[0], json.loads(options))


def answer_of(row: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a scored file in the form of a prediction; it lacks what the row does not hold."""
    evidence: dict[int, list[dict[str, Any]]] = {}
    for piece in row["evidence"] or ():
        evidence.setdefault(piece.pop("level"), []).append(piece)
    levels = [
        {"level": number, **level, "evidence": evidence.get(number, [])}
        for number, level in enumerate(row["levels"], start=1)
    ]
    return {
        "model": {"version": row["model"]},
        "image": {"width": row["width"], "height": row["height"], "sha256": row["sha256"]},
        "options": options,
        "path": row["node"].split("/"),
        "known_through_level": row["known_through_level"],
        "levels": levels,
        "answer": row["answer"],
    }

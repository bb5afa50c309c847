"""From feedback to the lines of a curation."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.errors import InputError
from protoserve.feedback.curation import CurationLine, curation, read_curation
from tests.protoserve.feedback.records import MODEL, record

OTHER = "sha256:" + "cd" * 32
RECORDS = [
    record(0, verdict="wrong reason", prototypes=[5, 2], comment="the stamp", by="Ann"),
    record(1, verdict="wrong reason", prototypes=[5], comment="a stamp again"),
    # The same picture once more.
    record(1, verdict="wrong reason", prototypes=[5], comment="the stamp", by="Ben", request="later"),
    record(2, verdict="wrong", node="Fruit/Pear"),
    record(3, verdict="wrong reason", prototypes=[5], model=OTHER),
]


def test_prototypes_are_gathered_by_version_and_counted_by_picture() -> None:
    assert curation(RECORDS) == [
        CurationLine(
            model=MODEL,
            prototype=5,
            reason="the stamp; a stamp again",
            by="Ann, kiosk, Ben",
            pictures=2,
            at="2026-03-01T12:00:01+00:00",
        ),
        CurationLine(
            model=MODEL, prototype=2, reason="the stamp", by="Ann", pictures=1, at="2026-03-01T12:00:00+00:00"
        ),
        CurationLine(model=OTHER, prototype=5, reason="", by="kiosk", pictures=1, at="2026-03-01T12:00:03+00:00"),
    ]
    assert [line.prototype for line in curation(RECORDS, pictures=2)] == [5]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "curation.jsonl"
    lines = curation(RECORDS)
    file.write_text("".join(line.model_dump_json() + "\n" for line in lines))
    assert read_curation(file) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record(0).model_dump_json() + "\n", "line 1: not a line of a curation.*run 'protoserve feedback FILE"),
        ("3\n", "line 1: not a line of a curation"),
        ("[]", "1 of its lines are not JSON or not complete"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_curation(file)

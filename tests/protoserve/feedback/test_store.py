"""Stores of feedback, and the records that count once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from protoserve.errors import InputError
from protoserve.feedback.store import FileStore, Kept, open_store
from tests.protoserve.feedback.records import record


def test_a_file_returns_what_it_was_given(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "feedback.jsonl"))
    assert store.read() == Kept(())
    kept = [record(0), record(1, verdict="wrong", node="Fruit/Pear", comment="line\nbreak")]
    for each in kept:
        store.append(each)
    assert store.read() == Kept(tuple(kept))


def test_a_request_that_was_sent_again_counts_once() -> None:
    again = record(0, at=record(0).at + timedelta(seconds=3))
    kept = Kept.of([record(0), record(1), again])
    assert kept == Kept((record(0), record(1)), repeated=1)


def test_torn_lines_are_counted_and_foreign_ones_named(tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    store = FileStore(file)
    store.append(record(0))
    with file.open("ab") as stream:
        stream.write(record(1).model_dump_json().encode()[:100])
    assert store.read() == Kept((record(0),), torn=1)
    store.append(record(2))
    assert store.read() == Kept((record(0), record(2)), torn=1)
    with file.open("ab") as stream:
        stream.write(b'{"answer": "of something else"}\n')
    with pytest.raises(InputError, match=r"feedback\.jsonl, line 4: not feedback \(answer: .*remove the line"):
        store.read()

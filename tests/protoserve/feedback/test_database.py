"""Feedback in SQLite, by way of SQLAlchemy."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta, timezone
from pathlib import Path

import pytest

from protoserve.errors import InputError
from protoserve.feedback.store import Kept, open_store
from tests.protoserve.feedback.records import record

pytest.importorskip("sqlalchemy", reason="needs the extra 'feedback'")
ROOT = Path(__file__).resolve().parents[3]


def test_a_database_returns_what_it_was_given(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/feedback.db"
    later = record(1).at.astimezone(timezone(timedelta(hours=5)))
    kept = [
        record(0, verdict="wrong reason", prototypes=[4, 2], comment="line\nbreak 'quoted'"),
        record(1, verdict="wrong", node="Früchte/Birne", by="Ann", key=None, at=later),
    ]
    for each in kept:
        open_store(url).append(each)
    assert open_store(url).read() == Kept(tuple(kept))


def test_other_programs_can_read_the_table(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/feedback.db").append(record(3, verdict="wrong", node="Fruit/Pear"))
    with sqlite3.connect(tmp_path / "feedback.db") as connection:
        found = connection.execute("SELECT verdict, node, path FROM protoserve_feedback").fetchall()
    connection.close()
    assert [(*found[0][:2], json.loads(found[0][2]))] == [("wrong", "Fruit/Pear", ["Fruit", "Apple"])]


WRITER = """
import sys
from protoserve.feedback.store import open_store
from tests.protoserve.feedback.records import record
store = open_store(sys.argv[1])
number = int(sys.argv[2])
while True:
    store.append(record(number))
    print(number, flush=True)
    number += 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals")
def test_killed_writers_lose_nothing_that_they_acknowledged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/feedback.db"
    open_store(url)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    acknowledged: list[int] = []
    for attempt in range(2):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, url, str(1000 * (2 * attempt + side))],
                stdout=subprocess.PIPE,
                env=environment,
            )
            for side in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            acknowledged.append(int(writer.stdout.readline()))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(word) for word in writer.communicate()[0].decode().split("\n")[:-1]]
    found = [int(kept.answer, 16) for kept in open_store(url).read().records]
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://", "is not the URL of a database|the database refuses"),
        ("sqlite:////nowhere/at/all.db", "sqlite:////nowhere/at/all.db: the database refuses .unable to open"),
    ],
)
def test_a_database_that_can_not_be_used_is_named(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_store(url)


def test_errors_never_show_the_password() -> None:
    with pytest.raises(InputError) as raised:
        open_store("oracle+nodriver://ann:secret@db:1521/shop?password=secret")
    assert "secret" not in str(raised.value)

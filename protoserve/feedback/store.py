"""Where feedback is kept: a file of JSON lines, or a database.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     open_store(f"{folder}/feedback.jsonl").read().records
()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from protoserve.errors import InputError
from protoserve.feedback.lines import append_line, read_lines
from protoserve.feedback.record import FeedbackRecord


@dataclass(frozen=True)
class Kept:
    """The records of a store, in their order; `repeated` counts those of requests that were sent again, and `torn` the
    lines that a stopped writer left unfinished. Neither are among the records."""

    records: tuple[FeedbackRecord, ...]
    repeated: int = 0
    torn: int = 0

    @classmethod
    def of(cls, records: Iterable[FeedbackRecord], torn: int = 0) -> Kept:
        """Leave out the records of repeated requests."""
        every = tuple(records)
        once = {record.said: record for record in reversed(every)}
        first = tuple(record for record in every if once[record.said] is record)
        return cls(first, len(every) - len(first), torn)


class FeedbackStore(Protocol):
    """Keeps feedback. Threads, processes and machines may share one."""

    def append(self, record: FeedbackRecord) -> None:
        """Keep a record durably; raises InputError where that is not possible, FullError where there is no room."""

    def read(self) -> Kept:
        """Return all records; raises InputError for what is not feedback."""


@dataclass(frozen=True)
class FileStore:
    """A file of JSON lines (see `protoserve.feedback.lines`), of at most `limit` bytes."""

    file: Path
    limit: int | None = None

    def append(self, record: FeedbackRecord) -> None:
        """As `FeedbackStore.append`."""
        append_line(self.file, record.model_dump_json(), limit=self.limit)

    def read(self) -> Kept:
        """As `FeedbackStore.read`; a missing file holds no records."""
        if not self.file.exists():
            return Kept(())
        lines = read_lines(self.file)
        records = []
        for number, value in lines.values:
            try:
                records.append(FeedbackRecord.model_validate(value))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"])) or "the record"
                raise InputError(
                    f"{self.file}, line {number}: not feedback ({place}: {first['msg']}); remove the line, or update "
                    "this program if a newer one wrote it"
                ) from error
        return Kept.of(records, lines.torn)


def open_store(place: str, *, limit: int | None = None) -> FeedbackStore:
    """Open the store at `place`, a file or a database URL such as `sqlite:///feedback.db`.

    `limit` is the largest size of a file in bytes. Raises InputError for a URL that can't be used, and
    MissingExtraError for a database without the extra `feedback`.
    """
    if is_url(place):
        from protoserve.feedback.database import DatabaseStore

        return DatabaseStore.open(place)
    return FileStore(Path(place), limit)


def is_url(place: str) -> bool:
    """Return whether a place is a database's URL rather than a file.

    >>> is_url("sqlite:///feedback.db"), is_url("feedback.jsonl")
    (True, False)
    """
    return "://" in place


def shown_place(place: str) -> str:
    """Return a place without the password of a URL, and without its query, which may hold one.

    >>> shown_place("postgresql://ann:secret@db:5432/shop?sslpassword=secret")
    'postgresql://ann@db:5432/shop'
    >>> shown_place("feedback.jsonl")
    'feedback.jsonl'
    """
    if not is_url(place):
        return place
    scheme, _, rest = place.partition("://")
    host, slash, database = rest.partition("?")[0].partition("/")
    account, at, host = host.rpartition("@")
    return f"{scheme}://{account.partition(':')[0]}{at}{host}{slash}{database}"

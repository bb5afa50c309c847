"""Feedback in a database, through SQLAlchemy (extra `feedback`): SQLite, PostgreSQL and others.

One table, `protoserve_feedback`, is made where it is missing. Its columns are the fields of `FeedbackRecord`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from protoserve.errors import InputError, MissingExtraError
from protoserve.feedback.record import FeedbackRecord
from protoserve.feedback.store import Kept, shown_place

if TYPE_CHECKING:
    from sqlalchemy import Engine, Table

TABLE: Final = "protoserve_feedback"


@dataclass(frozen=True)
class DatabaseStore:
    """The table of feedback in a database; made by `open`."""

    engine: Engine
    table: Table
    address: str
    """The URL without its password."""

    @classmethod
    def open(cls, url: str) -> DatabaseStore:
        """Connect to a database and make the table where it is missing.

        Raises InputError for a URL or a database that can't be used, MissingExtraError without SQLAlchemy.
        """
        try:
            import sqlalchemy
        except ModuleNotFoundError as error:
            raise MissingExtraError("feedback in a database", "feedback") from error
        address = shown_place(url)
        with _refused(address):
            # A connection that the database has closed meanwhile is opened again.
            engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
            table = _table()
            table.metadata.create_all(engine)
        return cls(engine, table, address)

    def append(self, record: FeedbackRecord) -> None:
        """Insert a record in a transaction of its own; raises InputError where the database refuses it."""
        with _refused(self.address), self.engine.begin() as connection:
            connection.execute(self.table.insert().values(**_row(record)))

    def read(self) -> Kept:
        """Return all records, in the order of their insertion; raises InputError where the database refuses."""
        columns = [column for column in self.table.columns if column.name != "number"]
        with _refused(self.address), self.engine.connect() as connection:
            import sqlalchemy

            rows = connection.execute(sqlalchemy.select(*columns).order_by(self.table.columns["number"])).mappings()
            found = [dict(row) for row in rows]
        return Kept.of(FeedbackRecord.model_validate(_with_zone(row)) for row in found)


def _table() -> Table:
    from sqlalchemy import JSON, BigInteger, Boolean, Column, DateTime, Integer, MetaData, String, Table, Text

    # SQLite numbers rows by itself only where the key is a plain integer.
    number = Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    return Table(
        TABLE,
        MetaData(),
        number,
        Column("at", DateTime(timezone=True), nullable=False),
        Column("request", String(128), nullable=False),
        Column("key", String(40)),
        Column("checked", Boolean, nullable=False),
        Column("answer", String(32), nullable=False, index=True),
        Column("model", String(71), nullable=False),
        Column("image", String(64), nullable=False, index=True),
        Column("path", JSON, nullable=False),
        Column("verdict", String(20), nullable=False),
        Column("node", Text),
        Column("prototypes", JSON, nullable=False),
        Column("comment", Text, nullable=False),
        Column("by", Text, nullable=False),
    )


def _row(record: FeedbackRecord) -> dict[str, Any]:
    return {**record.model_dump(), "at": record.at.astimezone(UTC)}


def _with_zone(row: dict[str, Any]) -> dict[str, Any]:
    """SQLite keeps no time zone; all times are written in UTC."""
    at = row["at"]
    return {**row, "at": at if at.tzinfo is not None else at.replace(tzinfo=UTC)}


@contextmanager
def _refused(address: str) -> Iterator[None]:
    """Raise InputError, which never repeats the password, where SQLAlchemy or the database's driver refuses."""
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{address}: needs the Python package {error.name!r}; install that driver") from None
    except (ArgumentError, ValueError) as error:
        raise InputError(
            f"{address!r} is not the URL of a database ({type(error).__name__}); give one such as sqlite:///feedback.db"
        ) from None
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
        raise InputError(f"{address}: the database refuses ({reason}); see that it runs and accepts writes") from None

"""The base of records: what was not set is not written, and what is unknown is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from protoserve.run.record import Record


class Sample(Record):
    """A record with one field that may be missing."""

    images: int
    seconds: float | None = None


def test_only_fields_that_were_set_are_written() -> None:
    assert Sample(images=2).model_dump() == {"images": 2}
    assert Sample(images=2, seconds=None).model_dump() == {"images": 2, "seconds": None}


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="picture"):
        Sample.model_validate({"images": 2, "picture": 1})

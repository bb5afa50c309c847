"""Text that is shown and logged has one line."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from protoserve.bundle.plain_text import PlainText

READER: TypeAdapter[str] = TypeAdapter(PlainText)


def test_a_line_of_text_is_taken_as_it_is() -> None:
    assert READER.validate_python("Granny Smith, “the green one”") == "Granny Smith, “the green one”"


@pytest.mark.parametrize("text", ["two\nlines", "a\tb\x00", "\x1b[31mred"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="control characters"):
        READER.validate_python(text)

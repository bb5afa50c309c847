"""Text in a bundle that is shown and logged: one line, without control characters."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from protoserve.names import is_plain


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError("has line breaks or control characters")
    return text


PlainText: TypeAlias = Annotated[str, AfterValidator(_plain)]

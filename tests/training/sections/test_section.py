"""Sections are frozen and refuse unknown keys."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.sections.section import Section


class Epochs(Section):
    epochs: int = 3


def test_a_section_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Epochs().epochs = 4  # type: ignore[misc]


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="epoch"):
        Epochs.model_validate({"epoch": 4})

"""What the sections of data and loss refuse."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.sections.data import DataConfig, LossConfig


def test_zoom_bounds_are_ordered_and_may_be_equal() -> None:
    assert DataConfig(zoom=(1.0, 1.0)).zoom == (1.0, 1.0)
    with pytest.raises(ValidationError, match="least factor first"):
        DataConfig(zoom=(1.2, 0.8))
    with pytest.raises(ValidationError, match="greater than 0"):
        DataConfig(zoom=(0.0, 0.8))


@pytest.mark.parametrize("term", ["noise", "outside", "leaf", "distillation"])
def test_optional_terms_are_off_by_default(term: str) -> None:
    assert getattr(LossConfig(), term) == 0
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        LossConfig.model_validate({term: -1})

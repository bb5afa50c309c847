"""What the sections of the stages refuse."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.sections.stages import PrototypesConfig, PruneConfig


def test_pruning_requires_no_more_patches_than_it_searches() -> None:
    """6 and 3 are published (Chen et al. 2019)."""
    assert (PruneConfig().nearest, PruneConfig().at_least) == (6, 3)
    assert PruneConfig(nearest=4, at_least=4).at_least == 4
    with pytest.raises(ValidationError, match="at_least is 5 of 4 nearest patches; lower at_least"):
        PruneConfig(nearest=4, at_least=5)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_every_round_keeps_some_prototypes_and_not_all(keep: float) -> None:
    with pytest.raises(ValidationError):
        PrototypesConfig(keep=keep)

"""The commands' own work: overrides of the configuration."""

from __future__ import annotations

import pytest

from protoserve.errors import InputError
from training.commands import _prototype_settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", {"prototypes.auto": True}),
        ("8", {"prototypes.auto": False, "model.prototypes_per_child": 8}),
    ],
)
def test_prototypes_become_settings(given: str, expected: dict[str, object]) -> None:
    assert _prototype_settings(given) == expected


@pytest.mark.parametrize("given", ["0", "-1", "many", ""])
def test_other_numbers_of_prototypes_are_refused(given: str) -> None:
    with pytest.raises(InputError, match="give 'auto' or how many per child, such as 8"):
        _prototype_settings(given)

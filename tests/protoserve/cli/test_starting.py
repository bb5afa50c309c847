"""Garbage is not collected while a command starts, and is afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from protoserve.cli.starting import uncollected


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Leave the tests' own objects to the collector."""
    yield
    gc.unfreeze()


def test_nothing_is_collected_at_the_start_and_what_is_left_is_set_aside() -> None:
    frozen = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        kept: list[list[int]] = [[] for _ in range(1000)]
    assert gc.isenabled() and gc.get_freeze_count() > frozen + len(kept)


def test_the_collector_is_as_before_after_an_error_too() -> None:
    with pytest.raises(ValueError, match="torn"), uncollected():
        raise ValueError("torn")
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

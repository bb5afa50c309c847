"""Options as text, in requests and on the command line."""

from __future__ import annotations

import doctest

import pytest

from protoserve.errors import InputError
from protoserve.inference import option_text as module
from protoserve.inference.option_text import levels_of, names_of, weights_of


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0


def test_nothing_is_no_node() -> None:
    assert names_of(None) == names_of("") == names_of(" , ") == ()


@pytest.mark.parametrize("text", ["Fruit", "Fruit:", "Fruit:two", "Fruit:-1", "Fruit:99999"])
def test_a_depth_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InputError, match=rf"depth={text}: write NODE:LEVEL"):
        levels_of([text])


@pytest.mark.parametrize("text", ["Fruit", "Fruit:", "Fruit:much", "3", ":3"])
def test_a_prior_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InputError, match=rf"prior={text}: write NODE:WEIGHT"):
        weights_of([text])

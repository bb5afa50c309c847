"""Sizes on the command line, and the options of hosts other than the service."""

import pytest

from export.sources import EdgeOptions, parse_size
from protoserve.errors import InputError


@pytest.mark.parametrize(("text", "size"), [("160", (160, 160)), ("160x224", (160, 224)), ("16X4096", (16, 4096))])
def test_a_size_is_one_number_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "15", "4097", "160x", "160x224x3", "-160", "1.5"])
def test_another_text_is_not_a_size(text: str) -> None:
    with pytest.raises(InputError, match="--image-size"):
        parse_size(text)


def test_a_graph_that_resizes_takes_one_picture_at_a_time() -> None:
    assert EdgeOptions().batches is None
    assert EdgeOptions(batch=8).batches == 8
    assert EdgeOptions(batch=8, resize=True).batches == 1

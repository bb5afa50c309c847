"""The names of targets, and what holds for the whole table."""

import pytest

from export.targets.table import TARGETS, target_named
from protoserve.errors import InputError


def test_a_target_is_found_by_its_name() -> None:
    assert target_named("onnx-int8").file == "model.int8.onnx"


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="no target 'onxx'; did you mean 'onnx'"):
        target_named("onxx")


def test_no_two_targets_write_the_same_file() -> None:
    files = [target.file for target in TARGETS.values()]
    assert len(set(files)) == len(files)

"""Options that several commands share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from protoserve.cli.options import chosen_model
from protoserve.device import Device
from tests.protoserve.cli.command_line import CommandLine


def test_a_bundle_alone_is_not_a_list() -> None:
    assert chosen_model(Path("a"), None) == Path("a") == chosen_model(Path("a"), [])
    assert chosen_model(Path("a"), [Path("b"), Path("c")]) == [Path("a"), Path("b"), Path("c")]


@pytest.mark.parametrize("command", ["predict", "explain", "score", "train", "evaluate", "validate", "serve"])
def test_every_command_with_a_device_takes_the_same_ones(command: str, protoserve_command: CommandLine) -> None:
    _, out, _ = protoserve_command(command, "--help")
    assert get_args(Device) == ("auto", "cpu", "cuda")
    words = " ".join(out.replace("│", " ").split())
    assert "auto|cpu|cuda" in words and "auto uses CUDA if it works" in words, words


def test_the_options_import_nothing_heavier_than_typer() -> None:
    code = (
        "import sys; import protoserve.cli.options; "
        "print(sorted(set(sys.modules) & {'numpy', 'pydantic', 'PIL', 'onnxruntime', 'torch'}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"

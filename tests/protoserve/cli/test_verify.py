"""`protoserve verify`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from protoserve.inference.classifier import load
from tests.protoserve.cli.command_line import CommandLine


def test_it_says_what_differs_and_exits_with_one(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    answer = load(tiny_bundle, device="cpu").predict(photograph).model_dump(mode="json")
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(answer))
    arguments = ("verify", file, photograph, tiny_bundle, "--device", "cpu")
    code, out, _ = protoserve_command(*arguments)
    assert code == 0 and out.startswith("same answer by onnx: ")
    answer["levels"][0]["conditional"] += 0.01
    file.write_text(json.dumps(answer))
    code, out, _ = protoserve_command(*arguments)
    assert code == 1 and out.startswith("levels 1, conditional: was ")
    code, out, _ = protoserve_command(*arguments, "--json")
    assert code == 1 and not json.loads(out)["same"]

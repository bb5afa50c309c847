"""The Python example for the edge: onnxruntime and numpy, one file, one picture."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protoserve import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_edge.py"


def printed(file: Path, picture: Path, folder: Path) -> str:
    """The lines that the example prints; it runs where it can't import this project."""
    copied = folder / "example.py"
    copied.write_text(EXAMPLE.read_text())
    command = [sys.executable, "-I", str(copied), str(file), str(picture)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert "prototype" in ended.stdout
    return ended.stdout


def answers(file: Path, picture: Path, folder: Path) -> list[tuple[float, str]]:
    """(percent, node) of every level that the example prints."""
    lines = printed(file, picture, folder)
    return [(float(part), name) for part, name in re.findall(r"^ *([\d.]+)%  (.+)$", lines, re.MULTILINE)]


def test_it_is_short_and_needs_no_more_than_it_says() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 75
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.parametrize("target", ["onnx", "onnx-int8", "ort"])
def test_it_answers_as_the_bundle_does(target: str, edge_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    prediction = load(edge_bundle, device="cpu").predict(photograph)
    found = answers(
        edge_bundle / {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx", "ort": "model.ort"}[target],
        photograph,
        tmp_path,
    )
    assert [name for _, name in found] == [level.node for level in prediction.levels]
    for (percent, _), level in zip(found, prediction.levels, strict=True):
        assert percent / 100 == pytest.approx(level.probability, abs=0.1 if target == "onnx-int8" else 2e-3)


def test_every_level_is_a_sum_that_closes(edge_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    prediction = load(edge_bundle, device="cpu").predict(photograph, top_k=3)
    levels = printed(edge_bundle / "model.onnx", photograph, tmp_path).split("%")[1:]
    for text, level in zip(levels, prediction.levels, strict=True):
        told = [float(value) for value in re.findall(r"([+-][\d.]+) prototype", text)]
        expected = [piece.contribution for piece in (*level.evidence, *level.against)]
        assert told == pytest.approx(expected, abs=2e-3)
        [(prior, rest, score)] = re.findall(r"([+-][\d.]+) prior, ([+-][\d.]+) rest: score (-?[\d.]+)", text)
        assert float(prior) + sum(told) + float(rest) == pytest.approx(float(score), abs=6e-3)
        if level.prior is not None:
            assert float(prior) == pytest.approx(level.prior, abs=1e-3)

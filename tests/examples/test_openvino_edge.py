"""The C++ example for the edge, compiled against OpenVINO's Python package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from protoserve import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "openvino_edge.cpp"
COMPILER = shutil.which("g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = Path(pytest.importorskip("openvino").__file__).parent
    libraries = sorted((openvino / "libs").glob("libopenvino.so.*"))
    if COMPILER is None or not libraries or not (openvino / "include" / "openvino" / "openvino.hpp").is_file():
        pytest.skip("needs g++ and an OpenVINO package with its headers")
    built = tmp_path_factory.mktemp("program") / "openvino_edge"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-isystem{openvino / 'include'}"]
    link = [str(libraries[0]), f"-Wl,-rpath,{openvino / 'libs'}"]
    subprocess.run([COMPILER, *flags, str(EXAMPLE), *link, "-o", str(built)], check=True, timeout=300)
    return built


def test_it_answers_as_the_bundle_does(program: Path, resizing_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    picture = tmp_path / "photo.ppm"
    Image.open(photograph).save(picture)
    command = [str(program), str(resizing_bundle / "model.openvino.xml"), str(picture)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    prediction = load(resizing_bundle, device="cpu").predict(photograph)
    found = re.findall(r"^ *([\d.]+)%  (.+)$", ended.stdout, re.MULTILINE)
    assert [name for _, name in found] == [level.node for level in prediction.levels]
    for (percent, _), level in zip(found, prediction.levels, strict=True):
        assert float(percent) / 100 == pytest.approx(level.probability, abs=5e-3)
    evidence = re.findall(r"([+-][\d.]+) prototype (\d+)", ended.stdout)
    shown = [one for level in prediction.levels for one in (*level.evidence[:3], *level.against[:3])]
    assert len(evidence) == len(shown)
    for (contribution, _), one in zip(evidence, shown, strict=True):
        assert float(contribution) == pytest.approx(one.contribution, abs=5e-3)


@pytest.mark.parametrize("content", [b"", b"P5 3 3 255\n123456789", b"P6 30 30 255\nshort"])
def test_a_bad_picture_is_one_line_and_exit_code_2(
    program: Path, resizing_bundle: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "photo.ppm").write_bytes(content)
    command = [str(program), str(resizing_bundle / "model.openvino.xml"), str(tmp_path / "photo.ppm")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1

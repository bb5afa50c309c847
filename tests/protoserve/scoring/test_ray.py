"""Scoring with Ray gives the same rows as scoring in one process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.protoserve.scoring.command import score


def test_without_ray_the_message_names_the_extra(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from protoserve.cli.root import main; main()"
    words = ["score", str(tiny_bundle), str(pictures), "-o", str(tmp_path / "x.parquet"), "--engine", "ray"]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == 2 and "pip install 'protoserve[ray]'" in ended.stderr


@pytest.mark.slow
@pytest.mark.skipif("PROTOSERVE_TEST_RAY" not in os.environ, reason="starts Ray for a minute or two: make test-faults")
def test_ray_gives_the_same_rows(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    score(bundle, pictures, "-o", here, "--part", "4")
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    score(bundle, pictures, "-o", there, "--part", "4", "--engine", "ray", "--actors", "1", env=environment)
    assert parquet.read_table(there).equals(parquet.read_table(here))

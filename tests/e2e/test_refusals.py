"""What the machine refuses, a full disk or a name that is not UTF-8, ends in one line or costs nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protoserve.cli.root import main
from tests.e2e.bench import Bench, refuse, training

ROOT = Path(__file__).resolve().parents[2]

FULL: dict[str, Callable[[Bench], list[str | Path]]] = {
    "train": training,
    "export": lambda b: ["export", b.run, "--bundle", b.directory / "new"],
    "score": lambda b: ["score", b.bundle, b.data, "-o", b.directory / "new.parquet", "--device", "cpu"],
    "ensemble": lambda b: ["ensemble", b.directory / "new", b.bundle],
    "render": lambda b: ["data", "render", b.directory / "new"],
    "explain": lambda b: [
        "explain",
        b.bundle,
        next(b.data.rglob("*.png")),
        "-o",
        b.directory / "new.png",
        "--device",
        "cpu",
    ],
}


@pytest.mark.parametrize("command", FULL.values(), ids=FULL)
def test_a_full_disk_ends_in_one_line(command: Callable[[Bench], list[str | Path]], bench: Bench) -> None:
    """No file may have more than 10 bytes, which fails as a full disk does."""
    ended = subprocess.run(
        [sys.executable, "-c", "from protoserve.cli.root import main; main()", *map(str, command(bench))],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "can't write it (File too large); free some space" in line and "new" in line
    assert "Traceback" not in ended.stderr


def test_folders_whose_names_are_not_utf8_are_used_all_the_same(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records show the name with escapes; only a bundle's folder must be UTF-8, because onnxruntime opens it."""
    data = bench.data.rename(bench.directory / os.fsdecode(b"caf\xe9"))
    run, bundle = bench.directory / os.fsdecode(b"r\xe9"), bench.directory / "whole"
    for arguments in (
        ["train", bench.config, "--data", data, "--run", run, "--device", "cpu"],
        ["evaluate", run, "--data", data, "--device", "cpu"],
        ["report", run],
        ["export", run, "--bundle", bundle],
        ["validate", bundle, "--data", data, "--device", "cpu"],
        ["score", bundle, data, "-o", bench.directory / os.fsdecode(b"s\xe9.parquet"), "--device", "cpu"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0, capsys.readouterr().err
    capsys.readouterr()
    assert json.loads((run / "provenance.json").read_text())["data"]["root"] == "caf\\xe9"
    refuse(
        capsys, ["export", run, "--bundle", bench.directory / os.fsdecode(b"b\xe9")], "b\\xe9: the path is not UTF-8"
    )

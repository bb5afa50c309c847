"""What the machine refuses, a full disk or a name that is not UTF-8, ends in one line or costs nothing."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from protoserve.cli.root import main
from tests.e2e.bench import Bench, refuse, training

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
def test_a_full_disk_ends_in_one_line(
    command: Callable[[Bench], list[str | Path]], bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    """No file may have more than 10 bytes, which fails as a full disk does."""
    arguments = command(bench)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capfd.readouterr()
    with capfd.disabled():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        reader, writer = os.pipe()
        stderr = os.dup(2)
        os.dup2(writer, 2)
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    assert ended.value.code == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "can't write it (File too large); free some space" in line and "new" in line


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

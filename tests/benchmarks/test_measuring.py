"""Training a run for a benchmark: one command per run that is not finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import measuring


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run."""
    called: list[list[str]] = []

    def protoserve(*arguments: str | Path) -> dict[str, Any]:
        called.append([str(argument) for argument in arguments])
        return {}

    monkeypatch.setattr(measuring, "protoserve", protoserve)
    return called


def test_a_run_is_trained_with_all_its_options(commands: list[list[str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    returned = measuring.trained_run(
        run,
        Path("c.yaml"),
        data=Path("data"),
        weights="w.pth",
        seed=3,
        head="linear",
        settings=("joint.epochs=1", "joint.epochs=2"),
        left_out=("A/x",),
    )
    assert returned == run
    (command,) = commands
    assert command == [
        *("train", "c.yaml", "--data", "data", "--weights", "w.pth", "--run", str(run), "--seed", "3"),
        *("--head", "linear", "--set", "joint.epochs=1", "--set", "joint.epochs=2", "--leave-out", "A/x"),
        *("--cache", str(tmp_path / "cache"), "--resume"),
    ]


def test_a_finished_run_is_kept(commands: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    measuring.trained_run(tmp_path, Path("c.yaml"), data=Path("data"), weights="w.pth", seed=0)
    assert commands == []

"""A run that is killed and taken up again ends with the same network as one that was left alone, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from training.rendered import render_dataset

pytestmark = pytest.mark.slow

CONFIG = """
name: tiny
batch: 16
image: {height: 32, width: 32, resize: stretch}
model: {backbone: resnet18, weights: null, stride: 8, dimensions: 16, prototypes_per_child: 2, %s}
data: {hold_out: 0.25, views: 3}
finetune: {epochs: 2}
warm: {epochs: 2}
joint: {epochs: 3, project_every: 2, %s}
last_layers: {epochs: 2}
"""
# With a frozen backbone features are cached between the steps; with a learning one they are not. Then the shares of
# its steps after which the run is killed: in plain fine-tuning, half way, and with only the end to do.
CASES = [
    pytest.param(("reduced: 24", "backbone_learning_rate: 0"), (0.1, 0.5, 1.0), id="frozen"),
    pytest.param(("reduced: null", "backbone_learning_rate: 1.0e-4"), (0.5,), id="learning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "data"
    render_dataset(folder, per_leaf=4, size=64)
    return folder


def train(config: Path, data: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from protoserve.cli import main; main()", "train"]
    options = ["--data", data, "--run", run, "--device", "cpu", *more]
    # For so small a network threads are a burden, above all beside other work on the machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, config, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def steps_done(run: Path) -> int:
    """How many steps the run's checkpoint holds; 0 while there is none."""
    file = run / "checkpoint.pt"
    return int(torch.load(file, map_location="cpu", weights_only=True)["step"]) if file.is_file() else 0


def kill_after(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Kill the training without warning as soon as its checkpoint holds `step` steps."""
    deadline = time.monotonic() + 300
    while steps_done(run) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (run / "model.pt").exists()


def without_seconds(metrics: Any) -> Any:
    """Nested metrics without the times, which may differ."""
    if isinstance(metrics, dict):
        return {name: without_seconds(value) for name, value in metrics.items() if name != "seconds"}
    return metrics


@pytest.mark.parametrize(("backbone", "kills"), CASES)
def test_a_killed_run_ends_as_if_it_had_not_been(
    backbone: tuple[str, str], kills: tuple[float, ...], data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG % backbone)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(train(config, data, whole))
    total = steps_done(whole)
    assert total > 10

    for share in kills:
        kill_after(train(config, data, killed, "--resume"), killed, round(share * total))
    finish(train(config, data, killed, "--resume"))

    expected = torch.load(whole / "model.pt", weights_only=True)
    found = torch.load(killed / "model.pt", weights_only=True)
    assert found["description"] == expected["description"]
    assert found["sources"] == expected["sources"]
    assert found["state"].keys() == expected["state"].keys()
    for name, tensor in expected["state"].items():
        assert torch.equal(found["state"][name], tensor), name
    for name in ("metrics.json", "provenance.json"):
        assert without_seconds(json.loads((killed / name).read_text())) == without_seconds(
            json.loads((whole / name).read_text())
        )
    assert (killed / "history.csv").read_text() == (whole / "history.csv").read_text()

"""A run that is killed repeatedly ends with the same network as an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from protoserve.cli.root import main
from training.rendered import render_dataset

pytestmark = pytest.mark.slow

CONFIG = """
name: tiny
batch: 16
image: {height: 32, width: 32, resize: stretch}
model: {backbone: shufflenet_v2_x0_5, weights: null, stride: 8, dimensions: 16, prototypes_per_child: 2}
data: {hold_out: 0.25, views: 3}
finetune: {epochs: 2, train_from: stage2.2}
warm: {epochs: 1}
joint: {epochs: 3, project_every: 2}
anchored: {epochs: 2}
last_layers: {epochs: 2}
"""
# A frozen backbone's features are cached between the steps; of one that learns, the features of its trunk. The optional
# stages are spread over both.
CASES = [
    pytest.param(
        {
            "model": {"reduced": 24},
            "prune": {"enabled": True},
            "loss": {"noise": 0.1, "outside": 0.5, "leaf": 0.2, "distillation": 0.5},
            "start": {"share": 0.5},
            "joint": {"patience": 1},
        },
        id="frozen",
    ),
    pytest.param(
        {
            "model": {"reduced": None},
            "start": {"share": 0.5},
            "joint": {"backbone_learning_rate": 1e-4, "patience": 2},
            "prototypes": {"auto": True, "start": 3, "epochs": 1},
        },
        id="learning",
    ),
    pytest.param(
        {
            "model": {"kind": "autoencoder"},
            "autoencoder": {"channels": [6, 3], "prototypes": 5, "epochs": 4, "learning_rate": 0.01},
        },
        id="autoencoder",
    ),
]
SEED = 20
# How often a run is killed; with PROTOSERVE_TEST_FAULTS, once in every stage.
KILLS = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered") / "data"
    render_dataset(folder, per_leaf=4, size=64)
    return folder


def write_config(file: Path, changes: dict[str, dict[str, Any]]) -> Path:
    import yaml

    content = yaml.safe_load(CONFIG)
    if changes["model"].get("kind") == "autoencoder":
        content = {name: content[name] for name in ("name", "batch", "image", "data")} | {"model": {}}
    for section, values in changes.items():
        content.setdefault(section, {}).update(values)
    file.write_text(yaml.safe_dump(content))
    return file


def train(context: ForkServerContext, config: Path, data: Path, run: Path) -> ForkServerProcess:
    arguments = ["train", str(config), "--data", str(data), "--run", str(run), "--device", "cpu", "--resume"]
    process = context.Process(target=main, args=(arguments,))
    process.start()
    return process


def finish(process: ForkServerProcess) -> None:
    process.join(timeout=300)
    assert process.exitcode == 0


def stages_done(run: Path) -> list[str]:
    """The stages of the steps in the run's checkpoint; empty without a checkpoint."""
    file = run / "checkpoint.pt"
    if not file.is_file():
        return []
    content = torch.load(file, map_location="cpu", weights_only=True)
    return [row["stage"] for row in json.loads(content["state"]["history"])]


def next_checkpoint(process: ForkServerProcess, run: Path, last: int | None) -> int | None:
    """Wait until the process has written another checkpoint than `last`, an inode, or has ended; the inode then."""
    file = run / "checkpoint.pt"
    while process.is_alive():
        time.sleep(0.002)
        now = file.stat().st_ino if file.is_file() else None
        if now != last:
            return now
    return last


def wait_for_checkpoints(process: ForkServerProcess, run: Path, count: int) -> None:
    """Wait until the process has written `count` checkpoints or has ended."""
    file = run / "checkpoint.pt"
    last = file.stat().st_ino if file.is_file() else None
    for _ in range(count):
        last = next_checkpoint(process, run, last)


def wait_within_step(process: ForkServerProcess, run: Path, seconds: float) -> None:
    """Wait that long, but not beyond the next checkpoint: a machine may work faster than when its pace was measured."""
    file = run / "checkpoint.pt"
    last = file.stat().st_ino if file.is_file() else None
    end = time.perf_counter() + seconds
    while process.is_alive() and time.perf_counter() < end:
        time.sleep(0.002)
        if (file.stat().st_ino if file.is_file() else None) != last:
            return


def pace_of(process: ForkServerProcess, run: Path) -> list[float]:
    """The seconds from the start of a process to its first checkpoint, on to its second, …, and on to its end."""
    last, before, paces = None, time.perf_counter(), []
    while process.is_alive():
        last = next_checkpoint(process, run, last)
        paces.append(time.perf_counter() - before)
        before += paces[-1]
    return paces


def without_seconds(metrics: Any) -> Any:
    """Nested metrics without the times, which may differ."""
    if isinstance(metrics, dict):
        return {name: without_seconds(value) for name, value in metrics.items() if name != "seconds"}
    return metrics


@pytest.mark.parametrize("changes", CASES)
def test_a_killed_run_ends_as_if_it_had_not_been(
    changes: dict[str, dict[str, Any]], forkserver: ForkServerContext, data: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "tiny.yaml", changes)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = train(forkserver, config, data, whole)
    paces = pace_of(process, whole)
    finish(process)
    stages = [*stages_done(whole), "finish"]
    assert len(paces) == len(stages)

    # Kill within a random step of some stages, or of every one. To repeat a failure, start from the printed seed.
    chance = random.Random(SEED)
    names = list(dict.fromkeys(stages))
    if "PROTOSERVE_TEST_FAULTS" not in os.environ:
        names = sorted(chance.sample(names, k=min(KILLS, len(names))), key=stages.index)
    moments = [chance.choice([step for step, stage in enumerate(stages) if stage == name]) for name in names]
    print(f"seed {SEED}, {len(stages)} steps, killed in those after {moments}")
    killed_in = []
    for moment in moments:
        if killed.is_dir():
            # A process that is killed while it writes leaves such a draft.
            (killed / ".draft-0a1b2c3d.checkpoint.pt").write_bytes(b"half")
        process = train(forkserver, config, data, killed)
        wait_for_checkpoints(process, killed, moment - len(stages_done(killed)))
        wait_within_step(process, killed, chance.uniform(0, 0.9 * paces[moment]))
        if not process.is_alive():
            break
        process.kill()
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL
        killed_in.append(stages[len(stages_done(killed))])
        print(f"killed in {killed_in[-1]}")
    else:
        process = train(forkserver, config, data, killed)
    finish(process)
    # A step of a few milliseconds may end before the kill.
    assert len(set(killed_in)) >= 0.5 * len(names)

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
    assert not [file for file in killed.rglob(".*") if file.is_file()], "half-written files stay behind"

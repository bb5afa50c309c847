"""A run's history in TensorBoard's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.loop.tensorboard import Board

pytest.importorskip("tensorboard")
# tensorboard's own use of what its dependencies deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HISTORY: list[dict[str, Any]] = [
    {"step": 0, "stage": "warm", "epoch": 1, "total": 2.5, "selection_leaf": 0.25},
    {"step": 1, "stage": "joint", "epoch": 1, "total": 1.5, "selection_leaf": 0.5},
]
LATER = {"step": 2, "stage": "last layers", "epoch": 1, "loss": 1.0, "selection_leaf": 0.75}


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_resumed_run_shows_every_row_once(tmp_path: Path) -> None:
    for history in ([], HISTORY):
        board = Board(tmp_path, history)
        for row in HISTORY[len(history) :]:
            board.add(row)
        if history:
            board.add(LATER)
        board.close()
    assert scalars(tmp_path) == {
        "warm/total": [(1, 2.5)],
        "joint/total": [(2, 1.5)],
        "last layers/loss": [(3, 1.0)],
        "selection_leaf": [(1, 0.25), (2, 0.5), (3, 0.75)],
    }


FULL_DISK = """
import json, logging, resource, sys
from pathlib import Path
from training.loop.tensorboard import Board

logging.basicConfig(level="WARNING", format="%(message)s", stream=sys.stdout)
board = Board(Path(sys.argv[1]), [])
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for row in json.loads(sys.argv[2]) * 3:
    board.add(row)
board.close()
"""


def test_a_full_disk_costs_the_events_and_not_the_run(tmp_path: Path) -> None:
    # In a process of its own: TensorBoard writes in a thread, whose failure would be noticed during another test.
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), json.dumps(HISTORY)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    [line] = ended.stdout.splitlines()
    assert "can't write the event file for TensorBoard any more" in line and "training goes on" in line

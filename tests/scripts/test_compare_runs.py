"""Two runs are equal only if every bit of their weights is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def compare(before: Path, after: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/compare_runs.py", "--before-run", str(before), "--after-run", str(after)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def changed(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run with one value moved by one unit in the last place."""
    run = tmp_path / "changed"
    shutil.copytree(tiny_run, run)
    content = torch.load(run / "model.pt", weights_only=True)
    prototypes = content["state"]["head.prototypes"]
    prototypes[2, 3] = torch.nextafter(prototypes[2, 3], torch.tensor(9.0))
    torch.save(content, run / "model.pt")
    return run


def test_equal_runs_are_called_equal(tiny_run: Path) -> None:
    done = compare(tiny_run, tiny_run)
    assert done.returncode == 0 and done.stdout.startswith("equal: all "), done.stderr


def test_the_tensor_with_one_changed_bit_is_named(tiny_run: Path, changed: Path) -> None:
    done = compare(tiny_run, changed)
    assert done.returncode == 1, done.stderr
    assert "different: 1 of " in done.stdout and "state.head.prototypes: 1 of " in done.stdout


def test_a_missing_checkout_is_an_error(tiny_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/compare_runs.py", "--before-run", str(tiny_run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "0 checkouts given, 1 needed" in done.stderr

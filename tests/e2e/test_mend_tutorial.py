"""The tutorial of docs/mend.md, command by command, on few pictures and with a short training.

`make test-faults` runs it; it takes minutes. How well a mended network scores is measured on the tutorial's own numbers
(`python -m benchmarks.accuracy.mending`).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import protoserve
from protoserve.bundle.folder import read_bundle
from tests.test_documents import shell_lines
from training.rendered.marking import COLOUR, marked
from training.rendered.picture import Picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes minutes: make test-faults"),
]

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "mend.md"
LEAF = ("Creature", "Bird", "Toucan")
# What makes the tutorial short.
SHORT = {
    "data render": ["--per-leaf", "16"],
    "train": ["--set", "finetune.epochs=8", "--set", "joint.epochs=6", "--set", "anchored.epochs=2"],
}


def run(line: str, folder: Path, *more: str) -> str:
    """Run a line of the tutorial; returns its standard output."""
    words = shlex.split(line)[1:]
    short = next((options for name, options in SHORT.items() if " ".join(words).startswith(name)), [])
    command = [sys.executable, "-c", "from protoserve.cli.root import main; main()", *words, *short, *more]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def shows_mark(data: Path, image: str, box: tuple[int, int, int, int]) -> bool:
    with Image.open(data / image) as picture:
        patch = np.asarray(picture.convert("RGB").crop(box), dtype=np.float64)
    return bool((np.sqrt(((patch - np.array(COLOUR)) ** 2).sum(axis=2)) < 60).mean() > 0.02)


def fooled(bundle: Path, data: Path) -> float:
    """How many test pictures of its siblings are taken for the marked class once they carry the mark."""
    pictures = []
    for file in sorted((data / "test").joinpath(*LEAF[:-1]).rglob("*.png")):
        if LEAF[-1] not in file.parts:
            with Image.open(file) as picture:
                pixels = np.asarray(picture)
            pictures.append(marked(Picture(pixels, np.zeros(pixels.shape[:2], dtype=np.uint8))).pixels)
    paths = [prediction.path for prediction in protoserve.load(bundle).predict(pictures)]
    return float(np.mean([tuple(path) == LEAF for path in paths]))


def test_the_tutorial_finds_the_mark_and_takes_it_out(tmp_path: Path) -> None:
    lines = [line for line in shell_lines(TUTORIAL.read_text(encoding="utf-8")) if line.startswith("protoserve")]
    names = [line.split()[1] for line in lines]
    assert names == ["data", "train", "export", "evaluate", "evaluate", "audit", "report", "curate"]
    for line in lines[:5]:
        run(line, tmp_path)
    data, bundle = tmp_path / "mend" / "data", tmp_path / "mend" / "bundle"
    card: dict[str, Any] = json.loads(run(lines[5], tmp_path, "--json"))
    records = read_bundle(bundle).prototypes
    path = ["/".join(LEAF[:level]) for level in (1, 2, 3)]
    ours = [record for record in records if record.child in path]
    showing = {record.id for record in ours if shows_mark(data, record.source_image, record.source_box)}
    named = [suspect["prototype"] for suspect in card["prototypes"]["suspects"]]
    seen = [prototype for prototype in named if prototype in showing]
    # The audit names every prototype of the marked class and of the nodes above it that shows the mark.
    assert seen and set(seen) == showing
    assert any(records[prototype].child == "/".join(LEAF) for prototype in seen)
    run(lines[6], tmp_path)
    report = (tmp_path / "mend" / "run" / "report.html").read_text(encoding="utf-8")
    assert all(records[prototype].source_image in report for prototype in seen)
    words = shlex.split(lines[7])
    words[words.index("--disable") + 1] = ",".join(map(str, seen))
    run(shlex.join(words), tmp_path)
    mended = tmp_path / "mend" / "mended"
    (link,) = read_bundle(mended).manifest.curation
    assert link.disabled == seen and link.refitted and link.accuracy is not None
    assert link.accuracy.after["leaf"] >= link.accuracy.before["leaf"]
    assert fooled(mended, data) < fooled(bundle, data)

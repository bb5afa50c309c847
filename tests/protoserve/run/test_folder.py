"""A run folder: its records read typed, and a missing or torn file is named with the cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protoserve.errors import InputError
from protoserve.run.folder import Run, open_run
from protoserve.run.provenance import Provenance
from protoserve.run.records import Metrics


def test_the_records_of_a_run_are_read(tiny_run: Path) -> None:
    run = open_run(tiny_run)
    assert run.metrics() == Metrics.model_validate(json.loads((tiny_run / "metrics.json").read_text()))
    assert run.provenance() == Provenance(seed=0)
    assert run.samples().dtype == np.uint8
    assert run.picture(3) == tiny_run / "prototypes" / "0003.webp"
    assert run.patches(12) == tiny_run / "patches" / "0012.webp"


def test_a_run_without_global_analysis_and_confusion_has_none(tiny_run: Path) -> None:
    run = open_run(tiny_run)
    assert run.analysis() is None
    assert run.confusion() is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"metrics\.json: can't read it \(No such file or directory\); finish the run"),
        ("{", r"metrics\.json: can't read it \(Invalid JSON"),
        ("[]", r"metrics\.json: can't read it \(Input should be an object"),
        ('{"purty": 1}', r"metrics\.json: can't read it \(purty: Extra inputs are not permitted\); train again"),
        ('{"test": {"images": 1}}', r"metrics\.json: can't read it \(test\.accuracy: Field required\)"),
    ],
)
def test_metrics_that_cannot_be_read_are_named(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match=said):
        Run(tmp_path).metrics()


@pytest.mark.parametrize(
    ("name", "read"), [("analysis.json", Run.analysis), ("confusion.json", Run.confusion), ("samples.npy", Run.samples)]
)
def test_a_torn_file_is_named(tmp_path: Path, name: str, read: Callable[[Run], object]) -> None:
    (tmp_path / name).write_bytes(b"\x00torn")
    with pytest.raises(InputError, match=f"{name}: can't read it"):
        read(Run(tmp_path))


def test_only_a_finished_run_opens(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run; make one with 'protoserve train"):
        open_run(tmp_path / "none")
    with pytest.raises(InputError, match=r"not finished \(no model\.pt\); resume it with"):
        open_run(tmp_path)
    (tmp_path / "model.pt").touch()
    assert open_run(tmp_path).model == tmp_path / "model.pt"

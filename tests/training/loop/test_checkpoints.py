"""What a checkpoint holds comes back, and a wrong one is refused with its cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from protoserve.errors import InputError
from training.loop.checkpoints import FORMAT, State, Teacher, read_checkpoint, read_state, state_content
from training.prototypes.nearest_patches import NearestPatches
from training.prototypes.projection import Projection

CPU = torch.device("cpu")
IDENTITY = json.dumps({"config": {"seed": 0, "joint": {"epochs": 2}}, "data": "f"})


def stored(file: Path, **changed: Any) -> Path:
    torch.save({"format": FORMAT, "identity": IDENTITY, **changed}, file)
    return file


def test_a_state_survives_the_file(tmp_path: Path) -> None:
    state = State(
        step=4,
        history=[{"step": 3, "stage": "warm", "epoch": 1, "total": 0.1}],
        projection=Projection(torch.tensor([3]), torch.tensor([1]), torch.rand(1).double(), torch.rand(1, 2)),
        best={"joint.weight": torch.rand(2)},
        teacher=Teacher(torch.rand(3, 2), torch.rand(3)),
        patches=NearestPatches(np.array([[2, 5]]), np.array([[0, 1]]), np.array([[0.25, 1 / 3]])),
        seconds=1.5,
    )
    content = read_checkpoint(stored(tmp_path / "c.pt", state=state_content(state)), IDENTITY, CPU)
    assert content is not None
    found = read_state(content["state"])
    assert (found.step, found.history, found.seconds) == (4, state.history, 1.5)
    assert found.records == state.records
    assert torch.equal(found.best["joint.weight"], state.best["joint.weight"])
    for one, other in ((found.projection, state.projection), (found.teacher, state.teacher)):
        assert one is not None and other is not None
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert found.patches is not None and state.patches is not None
    for array, expected in zip(found.patches, state.patches, strict=True):
        assert array.dtype == expected.dtype and np.array_equal(array, expected)


def test_an_empty_state_survives_too() -> None:
    assert read_state(state_content(State())) == State()


def test_without_a_file_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "c.pt", IDENTITY, CPU) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"c\.pt: can't read the checkpoint; remove it to start again"):
        read_checkpoint(tmp_path / "c.pt", IDENTITY, CPU)


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"format 2, this version writes {FORMAT}; start a new run"):
        read_checkpoint(stored(tmp_path / "c.pt", format=2), IDENTITY, CPU)


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    other = json.dumps({"config": {"seed": 0, "joint": {"epochs": 3}}, "data": "g"})
    with pytest.raises(InputError, match=r"another config\.joint\.epochs \(2, now 3\)"):
        read_checkpoint(stored(tmp_path / "c.pt"), other, CPU)

"""Renaming changes names and nothing else: numbers, pictures and bundles stay bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.folder import open_run
from training.extending.changes import read_changes
from training.extending.extending import extend


@pytest.fixture(scope="module")
def renamed(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "renamed"
    changes = read_changes([], [], ["A=Alpha", "A/x=A/B", "B=A"], [])
    extend(small_run, changes, None, output, device="cpu", console=Console(quiet=True))
    return output


def test_every_number_stays_bit_for_bit(renamed: Path, small_run: Path) -> None:
    first, second = load_network(small_run / "model.pt"), load_network(renamed / "model.pt")
    assert isinstance(second[0], PrototypeNetwork)
    assert second[0].head.taxonomy.names == ("Alpha", "A", "Alpha/B", "Alpha/y")
    assert first[2] == second[2]
    state = first[0].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in second[0].state_dict().items())
    for name in ("samples.npy", "similarities.npz", "history.csv", "prototypes/0000.webp", "patches/0003.webp"):
        assert (renamed / name).read_bytes() == (small_run / name).read_bytes()


def test_records_have_the_new_names_and_the_old_values(renamed: Path, small_run: Path) -> None:
    before, after = open_run(small_run), open_run(renamed)
    old, new = before.metrics(), after.metrics()
    assert old.calibration is not None and new.calibration is not None and new.novelty is not None
    assert new.calibration.temperature == {
        "": old.calibration.temperature[""],
        "Alpha": old.calibration.temperature["A"],
    }
    assert old.novelty is not None
    parents = {"": "", "A": "Alpha"}
    assert new.novelty.thresholds == {parents[name]: value for name, value in old.novelty.thresholds.items()}
    assert new.novelty.images == {parents[name]: value for name, value in old.novelty.images.items()}
    assert new.novelty.pooled == [parents[name] for name in old.novelty.pooled]
    assert old.test is not None and new.test is not None
    assert new.test.accuracy == old.test.accuracy
    assert set(new.test.siblings) == {"", "Alpha"}
    confusion, analysis, first = after.confusion(), after.analysis(), before.analysis()
    assert confusion is not None and confusion.test is not None and set(confusion.test) == {"", "Alpha"}
    assert analysis is not None and first is not None
    assert [(node.name, node.label) for node in analysis.nodes][2] == ("Alpha/B", "B")
    children = {"A": "Alpha", "A/x": "Alpha/B", "A/y": "Alpha/y", "B": "A"}
    assert [p.child for p in analysis.prototypes] == [children[p.child] for p in first.prototypes]
    assert np.array_equal(
        [[patch.distance for patch in p.patches] for p in analysis.prototypes],
        [[patch.distance for patch in p.patches] for p in first.prototypes],
    )
    assert [change.of for change in after.provenance().changes] == [["A"], ["A/x"], ["B"]]

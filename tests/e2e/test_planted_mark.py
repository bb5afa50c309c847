"""The tutorial of the planted mark: the audit names the prototypes that read it, and a refit without them recovers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.accuracy.planted_mark import Planted, measure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = Path(os.environ.get("PROTOSERVE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    weights = folder / "weights" / "mobilenet_v2_imagenet.pth"
    if not weights.is_file():
        pytest.skip(f"there is no {weights.name} in {weights.parent}; PROTOSERVE_DATA names the folder above it")
    return measure(tmp_path_factory.mktemp("planted"), str(weights))


def test_the_audit_names_every_prototype_that_was_cut_from_the_mark(planted: Planted) -> None:
    assert planted.on_mark and set(planted.on_mark) <= set(planted.named)


def test_the_network_relied_on_the_mark(planted: Planted) -> None:
    assert planted.marked <= planted.clean - 0.05


def test_a_refit_without_them_comes_within_two_points_of_a_network_that_never_saw_the_mark(planted: Planted) -> None:
    assert planted.refitted >= planted.clean - 0.02

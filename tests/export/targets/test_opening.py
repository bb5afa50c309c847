"""Answers are made again by files of other targets, in their own runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest

import protoserve
from protoserve.bundle.folder import read_bundle
from protoserve.errors import InputError
from tests.bundles import BundleFactory


def test_torchscript_gives_the_same_answer(bundle: BundleFactory, photograph: Path) -> None:
    folder = bundle(targets=("onnx", "torchscript"))
    answer = protoserve.load(folder, device="cpu").predict(photograph)
    assert protoserve.verify(answer, photograph, folder, target="torchscript", device="cpu").differences == ()


def test_a_routed_graph_and_an_unknown_target_are_refused(tiny_bundle: Path) -> None:
    from export.targets.opening import open_target

    for target, said in (("onnx-routed", "along the predicted path only"), ("torchscrip", "did you mean")):
        with pytest.raises(InputError, match=said):
            open_target(read_bundle(tiny_bundle), target)

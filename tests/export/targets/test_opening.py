"""Answers are made again by files of other targets, in their own runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest

import protoserve
from protoserve.bundle.ensemble import ensemble_of
from protoserve.bundle.folder import read_bundle
from protoserve.errors import BundleError, InputError
from tests.bundles import BundleFactory


def test_torchscript_gives_the_same_answer(bundle: BundleFactory, photograph: Path) -> None:
    folder = bundle(targets=("onnx", "torchscript"))
    answer = protoserve.load(folder, device="cpu").predict(photograph)
    assert protoserve.verify(answer, photograph, folder, target="torchscript", device="cpu").differences == ()


def test_a_routed_graph_gives_the_same_path_and_evidence(edge_bundle: Path, photograph: Path) -> None:
    answer = protoserve.load(edge_bundle, device="cpu").predict(photograph, top_k=3)
    result = protoserve.verify(answer, photograph, edge_bundle, target="onnx-routed", device="cpu")
    assert result.differences == () and "along the predicted path" in result.notes[0]
    # What the routed graph says of the path is what is compared.
    document = answer.model_dump(mode="json")
    document["levels"][0]["evidence"][0]["contribution"] += 0.01
    assert not protoserve.verify(document, photograph, edge_bundle, target="onnx-routed", device="cpu").same


def test_the_members_of_an_ensemble_run_in_another_runtime(bundle: BundleFactory, photograph: Path) -> None:
    members = [bundle(targets=("onnx", "torchscript")), bundle(targets=("onnx", "torchscript"), seed=1)]
    ensemble = ensemble_of([read_bundle(member) for member in members])
    answer = protoserve.load(ensemble, device="cpu").predict(photograph)
    assert protoserve.verify(answer, photograph, ensemble, target="torchscript", device="cpu").differences == ()
    with pytest.raises(BundleError, match="openvino"):
        protoserve.verify(answer, photograph, ensemble, target="openvino", device="cpu")


def test_an_unknown_target_is_refused(tiny_bundle: Path) -> None:
    from export.targets.opening import open_target

    with pytest.raises(InputError, match="did you mean"):
        open_target(read_bundle(tiny_bundle), "torchscrip")

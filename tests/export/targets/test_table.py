"""The table of targets: names and files, and every target's outputs and metadata in its own runtime."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from export.parity import Arrays, completed
from export.records import read_parity
from export.targets.onnx_files import run_onnx
from export.targets.table import TARGETS, target_named
from protoserve.bundle.folder import Bundle
from protoserve.errors import InputError
from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.novelty import NoveltyTable
from tests.export.stored import stored_in

Expected: TypeAlias = tuple[NDArray[np.uint8], Mapping[str, NDArray[Any]]]
# All but the browser's, whose page tests/e2e/test_browser.py runs, and LiteRT's, which needs its converter
# (test_litert_files.py).
ELSEWHERE = {"web", "litert"}
HERE = tuple(name for name in TARGETS if name not in ELSEWHERE)


def groups(bundle: Bundle) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The groups in which nodes and prototypes compete."""
    children = np.array([bundle.taxonomy.index[record.child] for record in bundle.prototypes], dtype=np.int64)
    node_group = NoveltyTable.of(bundle.taxonomy, bundle.kind, children.tolist()).group_of(bundle.kind)
    return node_group, node_group[children]


def test_a_target_is_found_by_its_name() -> None:
    assert target_named("onnx-int8").file == "model.int8.onnx"


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="no target 'onxx'; did you mean 'onnx'"):
        target_named("onxx")


def test_no_two_targets_write_the_same_file() -> None:
    files = [target.file for target in TARGETS.values()]
    assert len(set(files)) == len(files)


def test_the_documented_table_is_this_one() -> None:
    document = (Path(__file__).resolve().parents[3] / "docs" / "targets.md").read_text(encoding="utf-8")
    for name, target in TARGETS.items():
        file, runtime = re.escape(target.file), re.escape(target.runtime)
        row = rf"^\| `{name}` \| `{file}` \| {runtime}.* \| {target.precision.name} \|"
        assert re.search(row, document, re.MULTILINE), name


def test_every_target_of_the_table_is_run_by_a_test(edge: Bundle) -> None:
    assert {*edge.manifest.files, *ELSEWHERE} == set(TARGETS)


@pytest.mark.parametrize("target", HERE)
def test_it_answers_like_the_network_in_its_own_runtime(target: str, edge: Bundle, expected: Expected) -> None:
    pictures, outputs = expected
    run = TARGETS[target].run(edge.file(target))
    if TARGETS[target].planned:
        answers = [run(picture[None]) for picture in pictures]
        found: Arrays = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    else:
        found = run(pictures)
    if TARGETS[target].routed:
        assert found["certain"].all()
        found = completed(outputs, found, *groups(edge))
    exact = TARGETS[target].precision.name == "float32"
    assert (found["path"] == outputs["path"]).all()
    if exact:
        np.testing.assert_allclose(found["log_probability"], outputs["log_probability"], atol=1e-3, rtol=0)
    # Less precision moves the logarithms of small probabilities further.
    np.testing.assert_allclose(np.exp(found["log_probability"]), np.exp(outputs["log_probability"]), atol=0.1)
    # The head computes in float32 whatever the precision of the backbone.
    usual = np.array([record.usual for record in edge.manifest.prototypes], dtype=np.float32)
    for kind in ("evidence", "against"):
        prototypes = found[f"{kind}_prototype"]
        unusual = np.where(prototypes < 0, 0.0, found[f"{kind}_similarity"] - usual[np.maximum(prototypes, 0)])
        np.testing.assert_allclose(found[f"{kind}_contribution"], found[f"{kind}_weight"] * unusual, atol=1e-5)


@pytest.mark.parametrize("target", HERE)
def test_its_file_alone_names_answers_and_prepares_pictures(target: str, edge: Bundle) -> None:
    stored = stored_in(target, edge.file(target))
    manifest = json.loads(stored["protoserve"])
    assert manifest["input"] == edge.manifest.input.model_dump()
    assert manifest["version"].startswith("sha256:")
    assert len(manifest["prototypes"]["source_image"]) == edge.manifest.graph.prototypes
    assert stored["nodes"].split("\n") == list(edge.taxonomy.names)
    options = json.loads(stored["options"])
    assert options["target"] == target
    assert options["precision"] == TARGETS[target].precision.name
    assert options["batch"] == (1 if TARGETS[target].planned else None) and options["resize_in_graph"] is False


@pytest.mark.parametrize("target", ["onnx-edge", "onnx-routed", "torchscript", "torch-export", "openvino"])
def test_pictures_of_any_size_are_resized_as_by_the_host(target: str, resizing: Bundle) -> None:
    noise = np.random.default_rng(7).integers(0, 255, (20, 33, 3), dtype=np.uint8)
    picture = np.array(decode(np.kron(noise, np.ones((9, 5, 1), dtype=np.uint8))).picture)
    fitted = fit(decode(picture), resizing.manifest.input).array
    found = TARGETS[target].run(resizing.file(target))(picture[None])
    wanted = run_onnx(resizing.file("onnx"))(fitted[None])
    assert (found["path"] == wanted["path"]).all()
    if TARGETS[target].routed:
        found = completed(wanted, found, *groups(resizing))
    # The two resizes differ by single grey levels, which move a probability by less than this.
    np.testing.assert_allclose(found["log_probability"], wanted["log_probability"], atol=0.05)
    assert json.loads(stored_in(target, resizing.file(target))["options"])["resize_in_graph"] is True
    report = read_parity(resizing.directory)[target].resize
    assert report is not None
    assert report.worst_grey_levels <= 2 and report.same_path_as_host == 1.0

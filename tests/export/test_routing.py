"""Whether a routed graph pays: what is timed, what the bundle then holds, and how a user opts out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

from export import routing
from export.curating import curate
from export.records import read_parity
from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.cli.root import build_app
from protoserve.inference.classifier import load
from protoserve.networks.head import PrototypeHead, prototype_children
from protoserve.taxonomy import Taxonomy


class Exported(NamedTuple):
    """A bundle whose routed graph paid by a rule that any graph meets, and what the command printed."""

    bundle: Bundle
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("routing") / "bundle"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(routing, "may_pay", lambda head, width: True)
        patched.setattr(routing, "PAYS", 1000.0)
        shown = CliRunner().invoke(build_app(), ["export", str(tiny_run), "--bundle", str(folder)])
    assert shown.exit_code == 0, shown.output
    return Exported(read_bundle(folder), shown.stdout, shown.stderr)


def test_a_routed_graph_that_pays_is_part_of_the_bundle(exported: Exported) -> None:
    manifest = exported.bundle.manifest
    assert manifest.files == {"onnx": "model.onnx", "onnx-routed": "model.routed.onnx"}
    assert manifest.routing is not None and manifest.routing.kept
    # The tree is so small that all of it is scored.
    assert manifest.routing.routed == 1.0 and 0.1 < manifest.routing.ratio < 10
    assert read_parity(exported.bundle.directory).keys() == manifest.files.keys()
    assert [line.split()[0] for line in exported.stdout.splitlines()[:2]] == ["model.onnx", "model.routed.onnx"]
    assert f"takes {manifest.routing.ratio:.2f} of the full graph's time" in exported.stderr
    assert "--to onnx leaves it out" in exported.stderr
    assert load(exported.bundle, device="cpu").quick is not None


def test_one_that_does_not_pay_leaves_only_its_record(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "PAYS", 0.0)
    draft, bundle = tmp_path / "draft", exported.bundle
    shutil.copytree(bundle.directory, draft)
    reports = read_parity(draft)
    before = bundle.manifest.model_copy(update={"files": {"onnx": "model.onnx"}, "routing": None})
    samples = np.zeros((2, bundle.input.height, bundle.input.width, 3), dtype=np.uint8)
    manifest = routing.with_routing(draft, lambda version: before, reports, samples)("sha256:0")
    assert manifest.files == {"onnx": "model.onnx"} and list(reports) == ["onnx"]
    assert manifest.routing is not None and not manifest.routing.kept
    assert not (draft / "model.routed.onnx").exists()


def test_times_are_no_part_of_the_version(exported: Exported, tiny_bundle: Path) -> None:
    from protoserve.bundle.folder import rewrite_manifest

    manifest = exported.bundle.manifest
    assert manifest.routing is not None
    copy = exported.bundle.directory.with_name("copy")
    shutil.copytree(exported.bundle.directory, copy)
    slower = rewrite_manifest(read_bundle(copy), routing=manifest.routing.model_copy(update={"ratio": 0.5}))
    again = rewrite_manifest(slower, routing=manifest.routing.model_copy(update={"ratio": 0.4}))
    assert slower.version == again.version


def test_curation_leaves_out_a_routed_graph_that_nobody_asked_for(exported: Exported, tmp_path: Path) -> None:
    link = CurationLink(
        before=exported.bundle.version, disabled=[0], reason="the shelf", by="me", at="2026-01-01T00:00:00Z"
    )
    curated = curate(exported.bundle, link, tmp_path / "curated")
    assert list(curated.bundle.manifest.files) == ["onnx"]
    assert any("the routed graph can't be changed without the network" in note for note in curated.notes)


def test_only_trees_that_can_be_routed_are_tried() -> None:
    def head(branches: int, kind: str = "hierarchical") -> PrototypeHead:
        tree = Taxonomy.from_paths([f"{a}/{b}" for a in range(branches) for b in range(12)])
        return PrototypeHead(tree, prototype_children(tree, kind, 8), 2, kind=kind)  # type: ignore[arg-type]

    assert not routing.may_pay(head(3), 2)
    assert routing.may_pay(head(12), 2)
    assert not routing.may_pay(head(12, "flat"), 2)


def test_a_request_that_needs_both_graphs_costs_both() -> None:
    ratios, routed = np.array([0.7, 0.5, 1.6, 0.6]), np.array([True, True, False, True])
    assert routing.expected_ratio(ratios, routed) == pytest.approx(0.6 + 0.25)
    assert routing.expected_ratio(ratios, routed | True) == pytest.approx(0.65)
    assert routing.expected_ratio(ratios + 1, routed & False) == pytest.approx(1.65)

"""The benchmark of a bundle's files, on the bundle with all targets."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from export.benchmarking import BenchmarkReport, benchmark
from export.parity import Runtime
from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle
from protoserve.cli.root import build_app
from protoserve.errors import InputError, MissingExtraError


@pytest.fixture(scope="module")
def report(edge: Bundle, learned: tuple[Path, Path]) -> BenchmarkReport:
    return benchmark(edge, learned[1], "val", rounds=3)


def test_every_file_is_measured_beside_onnx(report: BenchmarkReport, edge: Bundle) -> None:
    assert set(report.targets) == set(edge.manifest.files)
    reference = report.targets["onnx"]
    assert reference.time_ratio == reference.processor_ratio == {1: 1.0, 8: 1.0}
    assert set(reference.evidence.first_evidence_same.values()) == {1.0}
    for target, figures in report.targets.items():
        assert figures.megabytes >= 0.99 * edge.file(target).stat().st_size / 1e6
        assert all(value > 0 for values in (figures.milliseconds, figures.time_ratio) for value in values.values())
        assert all(0 <= share <= 1 for share in figures.evidence.evidence_kept.values())
        if figures.precision == "float32":
            np.testing.assert_allclose(
                list(figures.evidence.accuracy.values()), list(reference.evidence.accuracy.values()), atol=1e-9
            )
            assert min(figures.evidence.evidence_kept.values()) == 1.0
    # With its weights, which lie in a companion.
    assert report.targets["openvino"].megabytes > 2 * edge.file("openvino").stat().st_size / 1e6


def test_pictures_and_targets_can_be_chosen(edge: Bundle, learned: tuple[Path, Path]) -> None:
    steps: list[str] = []
    found = benchmark(edge, learned[1], "train", targets=["onnx-int8"], limit=5, rounds=3, report=steps.append)
    assert list(found.targets) == ["onnx", "onnx-int8"] and found.pictures == 5
    assert steps[-1] == "timing batches of 8 in 3 rounds"
    with pytest.raises(InputError, match=r"--targets onxx: the bundle has only onnx, .*did you mean 'onnx'"):
        benchmark(edge, learned[1], targets=["onxx"])


def test_a_target_without_its_runtime_is_left_out_by_name(
    edge: Bundle, learned: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:

    def missing(file: Path) -> Runtime:
        raise MissingExtraError("the target openvino", "targets")

    monkeypatch.setitem(TARGETS, "openvino", replace(TARGETS["openvino"], run=missing))
    found = benchmark(edge, learned[1], "val", targets=["openvino"], limit=2, rounds=3)
    assert list(found.targets) == ["onnx"]
    assert "protoserve[targets]" in found.skipped["openvino"]


def test_the_command_prints_a_table_or_json(edge_bundle: Path, learned: tuple[Path, Path]) -> None:
    arguments = ["benchmark", str(edge_bundle), "--data", str(learned[1]), "--split", "val"]
    arguments += ["--targets", "onnx-fp16", "--pictures", "3", "--rounds", "3"]
    shown = CliRunner().invoke(build_app(), arguments)
    assert shown.exit_code == 0, shown.output
    assert re.search(r"│ onnx-fp16 │ +\d+\.\d │ +\d+\.\d\d │", shown.stdout)
    assert "timing batches of 1 in 3 rounds, after " in shown.stderr
    shown = CliRunner().invoke(build_app(), [*arguments, "--json"])
    document = json.loads(shown.stdout)
    assert list(document["targets"]) == ["onnx", "onnx-fp16"]
    assert document["machine"]["processor"]


def test_files_of_one_batch_or_of_any_size_are_run_as_they_are(
    small: Bundle, learned: tuple[Path, Path], resizing: Bundle
) -> None:
    found = benchmark(small, learned[1], "val", limit=3, rounds=3)
    assert set(found.targets) == {"onnx", "onnx-edge", "executorch"}
    assert min(found.targets["executorch"].evidence.evidence_kept.values()) == 1.0
    found = benchmark(resizing, learned[1], "val", targets=["onnx-edge", "onnx-routed"], limit=3, rounds=3)
    assert set(found.targets) == {"onnx", "onnx-edge"} and "resizes" in found.skipped["onnx-routed"]

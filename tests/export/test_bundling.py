"""No bundle unless everything is right, and never half of one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export import bundling
from export.bundling import export_bundle
from export.targets.onnx_files import run_onnx
from export.targets.table import TARGETS
from protoserve.bundle.folder import read_bundle
from protoserve.errors import InputError, ParityError
from protoserve.run.folder import open_run


def test_the_manifest_tells_what_the_graph_is(tiny_bundle: Path, tiny_run: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    manifest = bundle.manifest
    assert set(manifest.files) == {"onnx", "torchscript"}
    assert (manifest.graph.rows, manifest.graph.columns) == (8, 12)
    assert manifest.version.startswith("sha256:")
    assert manifest.metrics.model_dump() == json.loads((tiny_run / "metrics.json").read_text())
    assert {record.child for record in manifest.prototypes} == {
        *("Animal", "Tool", "Scuba", "Animal/Ape", "Animal/Lion", "Animal/Ape/Gibbon", "Animal/Ape/Orangutan"),
    }
    # Every prototype speaks for its own child: it started at +1.
    assert np.mean([record.weight for record in manifest.prototypes]) == pytest.approx(1.0, abs=0.15)


def test_the_parity_report_covers_every_target_and_batch_size(tiny_bundle: Path) -> None:
    parity = json.loads((tiny_bundle / "parity.json").read_text())
    assert set(parity) == {"onnx", "torchscript"}
    for report in parity.values():
        for batch in ("batch_1", "batch_3", "batch_8"):
            assert report[batch]["agreement"]["path"] == 1.0
            assert 0 < report[batch]["worst_difference"]["log_probability"] < 1e-3


def test_a_target_that_answers_differently_leaves_no_bundle(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(file):
        honest = run_onnx(file)

        def run(pictures):
            outputs = honest(pictures)
            outputs["logit"] = outputs["logit"] + 0.01
            return outputs

        return run

    monkeypatch.setitem(bundling.TARGETS, "onnx", replace(TARGETS["onnx"], run=lying))
    with pytest.raises(ParityError, match=r"logit differs by 0\.01"):
        export_bundle(open_run(tiny_run), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("targets", "message"),
    [(("onxx",), "no target 'onxx'; did you mean 'onnx'"), (("torchscript",), "always holds 'onnx'")],
)
def test_unknown_targets_and_a_missing_onnx_are_refused(
    tiny_run: Path, tmp_path: Path, targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_bundle(open_run(tiny_run), tmp_path / "bundle", targets)


def test_a_bundle_is_replaced_only_when_told_to(tiny_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, place)
    with pytest.raises(InputError, match="exists"):
        export_bundle(open_run(tiny_run), place)
    assert set(export_bundle(open_run(tiny_run), place, overwrite=True).manifest.files) == {"onnx"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_never_overwritten(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        export_bundle(open_run(tiny_run), tmp_path / "photos", overwrite=True)


def test_a_run_without_the_picture_of_a_prototype_leaves_no_bundle(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "prototypes" / "0003.webp").unlink()
    with pytest.raises(InputError, match=r"0003\.webp"):
        export_bundle(open_run(run), tmp_path / "bundle")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]

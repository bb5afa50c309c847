"""A bundle appears whole or not at all, and its manifest describes its graph."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.bundling import export_bundle
from export.parity import Arrays, Runtime
from export.records import read_parity
from export.sources import EdgeOptions
from export.targets.onnx_files import run_onnx
from export.targets.table import TARGETS
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import InputError, ParityError
from protoserve.promise.calibration import read_calibration, write_calibration
from protoserve.promise.measuring import promise_metrics
from protoserve.promise.threshold import Walks
from protoserve.run.folder import open_run
from protoserve.taxonomy import Taxonomy
from tests.bundles import LEAVES, NOVELTY, TEMPERATURE, BundleFactory
from tests.export.stored import stored_in
from tests.promises import sure_above


def test_the_manifest_describes_the_graph(tiny_bundle: Path, tiny_run: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    manifest = bundle.manifest
    assert set(manifest.files) == {"onnx", "torchscript"}
    assert (manifest.graph.rows, manifest.graph.columns) == (8, 12)
    assert manifest.version.startswith("sha256:")
    assert manifest.metrics.model_dump() == json.loads((tiny_run / "metrics.json").read_text())
    assert {record.child for record in manifest.prototypes} == {
        *("Animal", "Tool", "Scuba", "Animal/Ape", "Animal/Lion", "Animal/Ape/Gibbon", "Animal/Ape/Orangutan"),
    }
    # Every prototype started with the weight +1 for its own child.
    assert np.mean([record.weight for record in manifest.prototypes]) == pytest.approx(1.0, abs=0.15)


def test_the_manifest_describes_the_similarity(bundle: BundleFactory) -> None:
    cosine = read_bundle(bundle("cosine", ("onnx", "torchscript"), similarity="cosine")).manifest.graph
    assert (cosine.similarity, cosine.zero, cosine.smoothing) == ("cosine", None, 1)
    sphere = bundle("sphere", ("onnx", "torchscript"), latent="sphere", smoothing=3, hidden=20, zero=2.0)
    graph = read_bundle(sphere).manifest.graph
    assert (graph.similarity, graph.zero, graph.smoothing) == ("log1p", 2.0, 3)


def test_every_prototype_of_a_flat_network_belongs_to_a_leaf_at_the_root(flat_bundle: Path) -> None:
    bundle = read_bundle(flat_bundle)
    leaves = {bundle.taxonomy.names[leaf] for leaf in bundle.taxonomy.leaves}
    assert {record.child for record in bundle.manifest.prototypes} == leaves
    assert {record.parent for record in bundle.manifest.prototypes} == {""}


def test_the_manifest_holds_temperatures_and_thresholds_by_parent(calibrated_bundle: Path) -> None:
    manifest = read_bundle(calibrated_bundle).manifest
    assert manifest.temperature == TEMPERATURE
    assert manifest.novelty is not None
    # The shares that a run measured on its test images stay in the run.
    assert manifest.novelty.model_dump() == {**NOVELTY, "images": {}, "pooled": []}


def test_a_run_without_calibration_has_temperature_1_and_no_thresholds(tiny_bundle: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    assert manifest.novelty is None
    assert manifest.temperature == dict.fromkeys(TEMPERATURE, 1.0)


def test_calibration_changes_the_version(calibrated_bundle: Path, tiny_bundle: Path) -> None:
    assert read_bundle(calibrated_bundle).manifest.version != read_bundle(tiny_bundle).manifest.version


def test_the_parity_report_covers_every_target_and_batch_size(tiny_bundle: Path) -> None:
    parity = read_parity(tiny_bundle)
    assert set(parity) == {"onnx", "torchscript"}
    for report in parity.values():
        assert list(report.batches) == [1, 3, 8]
        for batch in report.batches.values():
            assert batch.agreement["path"] == 1.0
            assert 0 < batch.worst_difference["log_probability"] < 1e-3


def test_a_target_that_answers_differently_leaves_no_bundle(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(file: Path) -> Runtime:
        honest = run_onnx(file)

        def run(pictures: NDArray[np.uint8]) -> Arrays:
            outputs = honest(pictures)
            return {**outputs, "logit": outputs["logit"] + 0.01}

        return run

    monkeypatch.setitem(TARGETS, "onnx", replace(TARGETS["onnx"], run=lying))
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


def test_a_bundle_is_replaced_only_with_overwrite(tiny_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, place)
    with pytest.raises(InputError, match="exists"):
        export_bundle(open_run(tiny_run), place)
    assert set(export_bundle(open_run(tiny_run), place, overwrite=True).manifest.files) == {"onnx"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_is_not_a_bundle_is_never_overwritten(tiny_run: Path, tmp_path: Path) -> None:
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


def test_all_files_of_a_bundle_are_of_one_network(edge: Bundle) -> None:
    versions = {json.loads(stored_in(name, edge.file(name))["protoserve"])["version"] for name in ("onnx", "onnx-int8")}
    assert len(versions) == 1


def test_validation_is_in_the_parity_report(edge_bundle: Path) -> None:
    parity = read_parity(edge_bundle)
    for target in ("onnx-fp16", "onnx-int8"):
        validation = parity[target].validation
        assert validation is not None
        assert min(validation.first_evidence_same.values()) >= 0.95
        assert max(validation.loss_points.values()) <= 1.0
    assert parity["onnx"].validation is None


def test_a_fixed_batch_leaves_no_open_size(small: Bundle) -> None:
    model = onnx.load(small.file("onnx-edge"))
    for value in (*model.graph.input, *model.graph.output):
        assert all(size.HasField("dim_value") for size in value.type.tensor_type.shape.dim), value.name
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert not {node.op_type for node in model.graph.node} & {"Shape", "Range"}
    assert list(read_parity(small.directory)["onnx-edge"].batches) == [2]


def test_another_picture_size_is_in_the_manifest_and_claims_no_scores(small: Bundle) -> None:
    manifest = small.manifest
    assert (manifest.input.height, manifest.input.width) == (32, 48)
    assert (manifest.graph.rows, manifest.graph.columns) == (4, 6)
    assert manifest.metrics.model_dump() == {} and manifest.novelty is None


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (("onnx", "onnx-int8"), {}, "onnx-int8: its accuracy is checked on the run's own data set; add --data DIR"),
        (("onnx",), {"batch": 1}, "as in --to onnx,onnx-edge"),
        (("onnx", "ort"), {"batch": 2, "resize": True}, "leave one out"),
        (("onnx", "ort", "tflite"), {}, "no target 'tflite'"),
        (("onnx", "executorch"), {"resize": True}, "executorch fixes its memory"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_done(
    tiny_run: Path, tmp_path: Path, targets: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_bundle(open_run(tiny_run), tmp_path / "bundle", targets, options=EdgeOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_a_runs_promise_and_sample_pictures_reach_its_bundle(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    calibration = sure_above(Taxonomy.from_paths(LEAVES), 0.5, groups=3)
    write_calibration(calibration, tmp_path / "run" / "calibration")
    walks = Walks(np.zeros((0, 1)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    metrics = {"promise": promise_metrics(walks, 0.9, 0.95).model_dump()}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    bundle = export_bundle(open_run(tmp_path / "run"), tmp_path / "bundle", tried=2)
    samples = open_run(tiny_run).samples()
    for sample in range(2):
        decoded = np.asarray(Image.open(io.BytesIO(bundle.read_sample(sample))))
        assert any((decoded == picture).all() for picture in samples)
    assert bundle.samples == 2
    with pytest.raises(InputError, match=r"--samples 99: the run keeps \d+ pictures"):
        export_bundle(open_run(tiny_run), tmp_path / "many", tried=99)
    assert bundle.manifest.promise is not None and bundle.manifest.promise.precision == 0.9
    kept = read_calibration(bundle.directory / bundle.manifest.promise.folder, len(LEAVES), groups=3)
    np.testing.assert_array_equal(kept.log_probability, calibration.log_probability)
    # Another input size gives other probabilities, for which nothing is promised.
    resized = export_bundle(open_run(tmp_path / "run"), tmp_path / "small", size=(32, 48))
    assert resized.manifest.promise is None and not (resized.directory / "calibration").exists()

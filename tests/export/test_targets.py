"""Every target in its own runtime: what it answers, what it holds, and what it says about itself."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.bundling import export_bundle
from export.parity import completed
from export.targets import executorch_files, openvino_files, quantising
from export.targets.listing import listing, next_steps, summary
from export.targets.onnx_files import backbone_nodes, run_onnx
from export.targets.table import TARGETS
from protoserve.bundle.folder import read_bundle
from protoserve.errors import InputError, MissingExtraError, ParityError
from protoserve.graph_signature import named_arrays
from protoserve.networks.model_file import load_network
from protoserve.run.folder import open_run

HERE = tuple(name for name in TARGETS if name != "web")


@pytest.fixture(scope="module")
def bundle(edge_bundle: Path):
    return read_bundle(edge_bundle)


@pytest.fixture(scope="module")
def expected(tiny_run: Path):
    """(pictures, what the network says to them)"""
    network, _, _ = load_network(tiny_run / "model.pt")
    pictures = np.load(tiny_run / "samples.npy")[:5]
    with torch.inference_mode():
        outputs = network.explain(torch.from_numpy(pictures), 9)
    return pictures, {name: output.numpy() for name, output in named_arrays(outputs).items()}


def test_every_target_of_the_table_is_run_by_a_test(bundle) -> None:
    """All but the browser's are here; the page is in tests/e2e/test_browser.py."""
    assert {*bundle.manifest.files, "web"} == set(TARGETS)


@pytest.mark.parametrize("target", HERE)
def test_it_answers_like_the_network_in_its_own_runtime(target, bundle, expected) -> None:
    pictures, outputs = expected
    run = TARGETS[target].run(bundle.file(target))
    if TARGETS[target].planned:
        answers = [run(picture[None]) for picture in pictures]
        found = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
    else:
        found = run(pictures)
    if TARGETS[target].routed:
        assert found["certain"].all()
        found = completed(outputs, found)
    exact = TARGETS[target].precision.name == "float32"
    assert (found["path"] == outputs["path"]).all()
    if exact:
        np.testing.assert_allclose(found["log_probability"], outputs["log_probability"], atol=1e-3, rtol=0)
    # Fewer bits move the logarithm of what is improbable by more than that.
    np.testing.assert_allclose(np.exp(found["log_probability"]), np.exp(outputs["log_probability"]), atol=0.1)
    # Whatever the backbone's precision, the head adds up in float32.
    product = found["evidence_weight"] * found["evidence_similarity"]
    np.testing.assert_allclose(found["evidence_contribution"], product, atol=1e-5)


def stored_in(target, file):
    if target == "torchscript":
        extra = {"protoserve": "", "nodes": "", "options": ""}
        torch.jit.load(str(file), _extra_files=extra)
        return {name: text if isinstance(text, str) else text.decode() for name, text in extra.items()}
    if target == "torch-export":
        extra = {"protoserve": "", "nodes": "", "options": ""}
        torch.export.load(str(file), extra_files=extra)
        return extra
    if target == "openvino":
        import openvino

        model = openvino.Core().read_model(str(file))
        return {name: model.get_rt_info(name).astype(str) for name in ("protoserve", "nodes", "options")}
    if target == "executorch":
        return {name: executorch_files.stored_text(file, name) for name in ("protoserve", "nodes", "options")}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("target", HERE)
def test_its_file_alone_names_answers_and_prepares_pictures(target, bundle) -> None:
    stored = stored_in(target, bundle.file(target))
    manifest = json.loads(stored["protoserve"])
    assert manifest["input"] == bundle.manifest.input.model_dump()
    assert manifest["version"].startswith("sha256:")
    assert len(manifest["prototypes"]) == bundle.manifest.graph.prototypes
    assert stored["nodes"].split("\n") == list(bundle.taxonomy.names)
    options = json.loads(stored["options"])
    assert options["target"] == target
    assert options["precision"] == TARGETS[target].precision.name
    assert options["batch"] == (1 if TARGETS[target].planned else None) and options["resize_in_graph"] is False


def test_all_files_of_a_bundle_are_of_one_network(bundle) -> None:
    versions = {
        json.loads(stored_in(name, bundle.file(name))["protoserve"])["version"] for name in ("onnx", "onnx-int8")
    }
    assert len(versions) == 1


def test_half_precision_stops_at_the_head(bundle) -> None:
    model = onnx.load(bundle.file("onnx-fp16"))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    half = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    assert half and all("backbone" in name or "cast" in name for name in half)
    assert bundle.file("onnx-fp16").stat().st_size < 0.6 * bundle.file("onnx").stat().st_size


def test_eight_bits_stop_at_the_backbone(bundle) -> None:
    model = onnx.load(bundle.file("onnx-int8"))
    source = onnx.load(bundle.file("onnx"))
    backbone = set(backbone_nodes(source))
    of_output = {name: node for node in model.graph.node for name in node.output}
    restored = {name for name, node in of_output.items() if node.op_type == "DequantizeLinear"}
    reading = [node for node in model.graph.node if restored & set(node.input) and node.op_type == "Conv"]
    assert reading and {node.name for node in reading} <= backbone
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [of_output[node.input[1]].input[0] for node in reading]
    assert all(kinds[name] == onnx.TensorProto.INT8 for name in weights)


def test_the_reduced_build_is_told_its_operators(bundle) -> None:
    config = bundle.file("ort").with_suffix(".ort.config").read_text()
    assert "Conv" in config and "TopK" in config


def test_the_torch_export_file_holds_no_pickle(bundle) -> None:
    with zipfile.ZipFile(bundle.file("torch-export")) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))], names


def test_validation_is_in_the_parity_report(edge_bundle: Path) -> None:
    parity = json.loads((edge_bundle / "parity.json").read_text())
    for target in ("onnx-fp16", "onnx-int8"):
        found = parity[target]["validation"]
        assert min(found["first_evidence_same"].values()) >= 0.95
        assert max(found["loss_points"].values()) <= 1.0
    assert "validation" not in parity["onnx"]


def test_eight_bits_that_miss_are_refused_with_their_figures(
    learned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranges of a calibration gone wrong: all black pictures."""
    run, data = learned
    honest = quantising.write_int8

    def blind(source, file, calibration, *rest) -> None:
        monkeypatch.setattr(quantising, "_EVIDENCE_KEPT", 0.0)
        honest(source, file, np.zeros_like(calibration), *rest)

    monkeypatch.setattr(quantising, "write_int8", blind)
    with pytest.raises(ParityError, match=r"parity: .+ \d"):
        export_bundle(open_run(run), tmp_path / "bundle", ("onnx", "onnx-int8"), data=data)
    assert list(tmp_path.iterdir()) == []


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """Batches of exactly two pictures of 32 × 48 pixels; the network learned from 64 × 96."""
    from export.sources import EdgeOptions

    directory = tmp_path_factory.mktemp("bundles") / "small"
    run = open_run(tiny_run)
    targets = ("onnx", "onnx-edge", "executorch")
    return export_bundle(run, directory, targets, options=EdgeOptions(batch=2), size=(32, 48))


def test_a_fixed_batch_leaves_no_open_size(small) -> None:
    model = onnx.load(small.file("onnx-edge"))
    for value in (*model.graph.input, *model.graph.output):
        assert all(size.HasField("dim_value") for size in value.type.tensor_type.shape.dim), value.name
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert not {node.op_type for node in model.graph.node} & {"Shape", "Range"}
    assert list(json.loads((small.directory / "parity.json").read_text())["onnx-edge"])[-1] == "batch_2"


def test_memory_is_planned_for_as_many_pictures_as_asked_for(small) -> None:
    pictures = np.random.default_rng(3).integers(0, 255, (2, 32, 48, 3), dtype=np.uint8)
    found = executorch_files.run_executorch(small.file("executorch"))(pictures)
    wanted = run_onnx(small.file("onnx"))(pictures)
    assert found["path"].shape[0] == 2 and (found["path"] == wanted["path"]).all()
    np.testing.assert_allclose(found["log_probability"], wanted["log_probability"], atol=1e-3, rtol=0)
    assert json.loads(stored_in("executorch", small.file("executorch"))["options"])["batch"] == 2


def test_the_service_s_own_graph_takes_any_batch_all_the_same(small) -> None:
    pictures = np.zeros((3, 32, 48, 3), dtype=np.uint8)
    assert run_onnx(small.file("onnx"))(pictures)["path"].shape[0] == 3


def test_another_picture_size_is_in_the_manifest_and_claims_no_scores(small) -> None:
    manifest = small.manifest
    assert (manifest.input.height, manifest.input.width) == (32, 48)
    assert (manifest.graph.rows, manifest.graph.columns) == (4, 6)
    assert manifest.metrics.model_dump() == {} and manifest.novelty is None


@pytest.fixture(scope="module")
def resizing(resizing_bundle: Path):
    return read_bundle(resizing_bundle)


@pytest.mark.parametrize("target", ["onnx-edge", "onnx-routed", "torchscript", "torch-export", "openvino"])
def test_pictures_of_any_size_are_resized_as_by_the_host(target: str, resizing, expected) -> None:
    from protoserve.images.decoding import decode
    from protoserve.images.fitting import fit

    noise = np.random.default_rng(7).integers(0, 255, (20, 33, 3), dtype=np.uint8)
    picture = np.array(decode(np.kron(noise, np.ones((9, 5, 1), dtype=np.uint8))).picture)
    fitted = fit(decode(picture), resizing.manifest.input).array
    found = TARGETS[target].run(resizing.file(target))(picture[None])
    wanted = run_onnx(resizing.file("onnx"))(fitted[None])
    assert (found["path"] == wanted["path"]).all()
    if TARGETS[target].routed:
        found = completed(wanted, found)
    # A grey level here and there moves a probability by less than this.
    np.testing.assert_allclose(found["log_probability"], wanted["log_probability"], atol=0.05)
    assert json.loads(stored_in(target, resizing.file(target))["options"])["resize_in_graph"] is True
    report = json.loads((resizing.directory / "parity.json").read_text())[target]["resize"]
    assert report["worst_grey_levels"] <= 2 and report["same_path_as_host"] == 1.0


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (("onnx", "onnx-int8"), {}, "onnx-int8 is compared on pictures of the run's data set; add --data DIR"),
        (("onnx",), {"batch": 1}, "add --to onnx,onnx-edge"),
        (("onnx", "ort"), {"batch": 2, "resize": True}, "leave one out"),
        (("onnx", "ort", "tflite"), {}, "no target 'tflite'"),
        (("onnx", "executorch"), {"resize": True}, "executorch plans its memory"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_done(
    tiny_run: Path, tmp_path: Path, targets: tuple[str, ...] | tuple[str, str], options: dict[str, Any], message: str
) -> None:
    from export.sources import EdgeOptions

    with pytest.raises(InputError, match=message):
        export_bundle(open_run(tiny_run), tmp_path / "bundle", targets, options=EdgeOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"protoserve\[targets\]"):
        openvino_files.write_openvino(tmp_path / "model.onnx", tmp_path / "model.xml", {})
    monkeypatch.setitem(__import__("sys").modules, "executorch.runtime", None)
    with pytest.raises(MissingExtraError, match=r"protoserve\[targets\]"):
        executorch_files.run_executorch(tmp_path / "model.pte")


def test_of_a_routed_file_is_said_how_often_it_is_certain(bundle) -> None:
    parity = json.loads((bundle.directory / "parity.json").read_text())
    assert "certain of 100 % of the sample pictures" in summary(bundle, "onnx-routed", parity["onnx-routed"])
    parity["onnx-routed"]["batch_3"]["certain"] = 0.25
    assert "certain of 25 %" in summary(bundle, "onnx-routed", parity["onnx-routed"])
    assert "certain" not in summary(bundle, "onnx", parity["onnx"])


def test_the_table_and_the_next_steps_name_every_target(bundle) -> None:
    names = {str(cell) for cell in listing().columns[0].cells}
    assert set(TARGETS) <= names
    steps = next_steps(bundle, None)
    assert f"protoserve serve {bundle.directory} --port 3000" in steps
    for line in steps:
        assert "FILE" not in line and "FOLDER" not in line


def test_web_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.targets import web

    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with pytest.raises(InputError, match="install Node"):
        web.write_web(
            tmp_path / "model.onnx",
            tmp_path / "web" / "index.html",
            {"protoserve": "{}", "options": "{}"},
            tmp_path / "pictures",
        )


def test_an_npm_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.targets import web

    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexec sleep 60\n")
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    monkeypatch.setattr(web, "PATIENCE", 1)
    with pytest.raises(InputError, match=r"not fetched onnxruntime-web@.+ within 1 s"):
        web.fetch_runtime(tmp_path)


def test_the_command_shows_the_table() -> None:
    from typer.testing import CliRunner

    from protoserve.cli.root import build_app

    shown = CliRunner().invoke(build_app(), ["export", "--list-targets"])
    assert shown.exit_code == 0
    assert all(target.file in shown.output for target in TARGETS.values())


def test_the_readme_s_table_is_this_one() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    for name, target in TARGETS.items():
        file, runtime = re.escape(target.file), re.escape(target.runtime)
        row = rf"^\| `{name}` \| `{file}` \| {runtime}.* \| {target.precision.name} \|"
        assert re.search(row, readme, re.MULTILINE), name

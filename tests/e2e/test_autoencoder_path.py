"""The prototype autoencoder from training to the service, on a few small pictures."""

from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from export.bundling import export_bundle
from export.validating import validate
from protoserve.cli.root import build_app
from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.inference.classifier import Classifier, load
from protoserve.run.folder import open_run
from protoserve.schema import Prediction
from service.app import create_app
from service.model.holder import ModelHolder
from service.settings import Settings
from tests.idx import IDX_TREE
from tests.service.predictions import as_served
from training import running
from training.config import parse_config
from training.outcome import evaluating

with warnings.catch_warnings():
    # Starlette recommends httpx2 but does not require it; httpx suffices here.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

CONFIG = {
    "name": "tiny",
    "batch": 32,
    "image": {"height": 20, "width": 16, "resize": "stretch"},
    "model": {"kind": "autoencoder"},
    "data": {"hold_out": 0.2},
    "autoencoder": {"channels": [8, 4], "prototypes": 6, "epochs": 30, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def data(tiny_idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pictures with a tree over their four numbers."""
    folder = shutil.copytree(tiny_idx, tmp_path_factory.mktemp("named") / "data")
    (folder / "taxonomy.yaml").write_text(IDX_TREE)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    console = Console(file=io.StringIO())
    running.train(parse_config(CONFIG, "test"), data, folder, linear=False, resume=False, device="cpu", console=console)
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(open_run(run), folder, ("onnx", "torchscript"))
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> Classifier:
    return load(bundle, device="cpu")


def test_the_bundle_scores_as_the_run_does(run: Path, bundle: Path, data: Path) -> None:
    expected = evaluating.evaluate(run, data, "test", device="cpu", console=Console(file=io.StringIO()))
    found = validate(bundle, data, "test", device="cpu")
    assert expected.images == 40
    assert expected.accuracy["leaf"] > 0.9
    assert set(expected.accuracy) == {"level_1", "level_2", "leaf"}
    assert found.accuracy == expected.accuracy
    parity = json.loads((bundle / "parity.json").read_text())
    for target in ("onnx", "torchscript"):
        for batch in (1, 3, 8):
            assert max(parity[target][f"batch_{batch}"]["worst_difference"].values()) < 1e-4


def test_evidence_is_the_whole_picture_and_adds_up(model: Classifier, data: Path) -> None:
    assert model.bundle.kind == "autoencoder"
    dataset = read_split(data, "test", read_taxonomy(data))
    wide = [dataset.picture(number).picture.resize((32, 20)) for number in range(8)]
    for prediction in model.predict(wide, top_k=6, maps=True):
        *above, leaf = prediction.levels
        assert above == [] or (above[0].logit, above[0].evidence) == (None, [])
        assert leaf.logit is not None and leaf.prior is not None
        told = sum(one.contribution for one in [*leaf.evidence, *leaf.against])
        assert leaf.prior + told == pytest.approx(leaf.logit, abs=1e-4)
        assert leaf.rest == pytest.approx(0.0, abs=1e-4)
        assert leaf.evidence_share == pytest.approx(1.0, abs=1e-4)
        for one in [*leaf.evidence, *leaf.against]:
            assert one.contribution == pytest.approx(one.weight * (one.similarity - one.usual), abs=1e-4)
            assert one.box == (0, 0, 32, 20)
        for one in leaf.evidence:
            assert one.map is not None
            ((similarity,),) = one.map
            assert similarity == pytest.approx(one.similarity, abs=1e-5)
            assert one.source is not None
            assert one.source.image.startswith("train/")
        # The strongest evidence for a leaf is a prototype of that leaf.
        assert model.bundle.prototypes[leaf.evidence[0].prototype].child == leaf.node


def test_every_picture_of_a_training_set_of_patterns_finds_its_own(model: Classifier, data: Path) -> None:
    dataset = read_split(data, "test", read_taxonomy(data))
    found = model.predict([dataset.picture(number).picture for number in range(len(dataset))])
    names = [dataset.taxonomy.names[dataset.taxonomy.leaves[leaf]] for leaf in dataset.leaves]
    assert np.mean([prediction.levels[-1].node == name for prediction, name in zip(found, names, strict=True)]) > 0.9


@pytest.fixture
def picture(data: Path, tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    read_split(data, "test", read_taxonomy(data)).picture(0).picture.save(file)
    return file


def test_the_commands_answer_and_draw(model: Classifier, bundle: Path, picture: Path, tmp_path: Path) -> None:
    predicted = CliRunner().invoke(build_app(), ["predict", str(bundle), str(picture), "--json", "--device", "cpu"])
    assert predicted.exit_code == 0, predicted.stderr
    document = json.loads(predicted.stdout)
    found = Prediction.model_validate(document["predictions"][0] if "predictions" in document else document)
    assert found.path == model.predict(picture).path
    figure = tmp_path / "explanation.png"
    drawn = CliRunner().invoke(build_app(), ["explain", str(bundle), str(picture), "-o", str(figure)])
    assert drawn.exit_code == 0, drawn.stderr
    with Image.open(figure) as explanation:
        assert explanation.width == 1200


def test_the_service_gives_the_same_answer_and_shows_prototypes(bundle: Path, model: Classifier, picture: Path) -> None:
    holder = ModelHolder(lambda: bundle, Settings(device="cpu"))
    with TestClient(create_app(Settings(), holder.current), raise_server_exceptions=False) as client:
        answer = client.post("/v1/predict", content=picture.read_bytes())
        assert answer.status_code == 200, answer.text
        assert answer.text == as_served(model.predict(picture)).model_dump_json()
        facts = client.get("/v1/model")
        assert facts.status_code == 200, facts.text
        assert facts.json()["kind"] == "autoencoder"
        found = Prediction.model_validate_json(answer.text)
        source = found.levels[-1].evidence[0].source
        assert source is not None and source.href is not None
        shown = client.get(source.href)
        assert shown.status_code == 200
        with Image.open(io.BytesIO(shown.content)) as image:
            # The decoded prototype and its nearest picture side by side, each higher than wide.
            assert image.width == 2 * 224 + 8

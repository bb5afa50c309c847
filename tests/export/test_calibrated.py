"""Temperatures and novelty thresholds survive the export: in the graph, in the manifest, in the answer."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import protoserve
from export.bundling import export_bundle
from protoserve.bundle.folder import read_bundle
from protoserve.cli.figures import explain_figure
from protoserve.cli.terminal import prediction_tree
from protoserve.errors import BundleError
from protoserve.images.decoding import decode
from protoserve.inference.engine import Engine
from protoserve.networks.model_file import load_network, save_network
from protoserve.run.folder import open_run

TEMPERATURE = [0.5, 2.0, 3.0]
# Of the random network's conditionals every one passes at the root, none among Animal's children.
NOVELTY = {"score": "probability", "true_positive_rate": 0.9, "thresholds": {"": 0.0, "Animal": 1.5, "Animal/Ape": 0.0}}


@pytest.fixture(scope="module")
def calibrated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny run with temperatures and thresholds, exported."""
    directory = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(tiny_run, directory / "run")
    network, description, sources = load_network(directory / "run" / "model.pt")
    network.head.temperature.copy_(torch.tensor(TEMPERATURE))
    save_network(directory / "run" / "model.pt", network, description, sources)
    shares = {"known_at_parents": 0.9, "known_throughout": 0.8}
    metrics = {"novelty": {**NOVELTY, "test": shares}}
    (directory / "run" / "metrics.json").write_text(json.dumps(metrics))
    export_bundle(open_run(directory / "run"), directory / "bundle", ("onnx",))
    return directory / "bundle"


def test_the_manifest_holds_them_by_parent(calibrated) -> None:
    manifest = read_bundle(calibrated).manifest
    # Tool has one child, so nothing competes there.
    assert manifest.temperature == {"": 0.5, "Animal": 2.0, "Animal/Ape": 3.0}
    assert manifest.novelty is not None
    assert manifest.novelty.model_dump() == NOVELTY


def test_the_graph_divides_each_parents_logits_by_its_temperature(calibrated, tiny_run: Path) -> None:
    bundle = read_bundle(calibrated)
    taxonomy = bundle.taxonomy
    pictures = np.load(tiny_run / "samples.npy")[:6]
    found = Engine(bundle, device="cpu").run(pictures)
    conditional = np.zeros(found.logit.shape)
    for temperature, group in zip(TEMPERATURE, taxonomy.groups, strict=True):
        logits = found.logit[:, list(group.children)].astype(np.float64) / temperature
        conditional[:, list(group.children)] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for node in range(len(taxonomy.nodes)):
        above = [at for at in taxonomy.path_at_level[node] if at >= 0]
        np.testing.assert_allclose(found.log_probability[:, node], conditional[:, above].sum(axis=1), atol=1e-4)


def test_the_answer_says_what_is_unknown(calibrated, photograph: Path, tiny_run: Path) -> None:
    model = protoserve.load(calibrated, device="cpu")
    pictures = [*np.load(tiny_run / "samples.npy")[:8], photograph]
    predictions = [model.predict(picture) for picture in pictures]
    for prediction in predictions:
        expected = [True, False, False] if prediction.path[0] == "Animal" else [True, True, True]
        assert [level.known for level in prediction.levels] == expected[: len(prediction.levels)]
        assert prediction.known_through_level == sum(expected[: len(prediction.levels)])


def test_the_terminal_says_it_plainly(calibrated, photograph: Path) -> None:
    prediction = protoserve.load(calibrated, device="cpu").predict(photograph)
    # Whatever the random network predicts: known at the first level alone.
    template = prediction.levels[0]
    levels = [
        template.model_copy(update={"level": level, "label": label, "known": level == 1})
        for level, label in enumerate(("Animal", "Ape", "Gibbon"), start=1)
    ]
    update = {"levels": levels, "path": ["Animal", "Ape", "Gibbon"], "known_through_level": 1}
    console = Console(width=300)
    with console.capture() as captured:
        console.print(prediction_tree(Path("photo.png"), prediction.model_copy(update=update)))
    lines = captured.get().splitlines()
    assert "unknown" not in next(line for line in lines if "Animal  " in line)
    assert "unknown: like none of the classes of Animal" in next(line for line in lines if "Ape  " in line)
    assert next(line for line in lines if "Gibbon  " in line).count("unknown") == 1


def test_the_figure_marks_unknown_levels(calibrated, photograph: Path) -> None:
    model = protoserve.load(calibrated, device="cpu")
    prediction = model.predict(photograph, top_k=1)

    def drawn(known):
        levels = [level.model_copy(update={"known": known}) for level in prediction.levels]
        changed = prediction.model_copy(update={"levels": levels})
        return np.asarray(explain_figure(model.bundle, decode(photograph), changed))

    assert (drawn(True) == drawn(None)).all()
    marked = (drawn(False) != drawn(True)).any(axis=(1, 2))
    # Once in the title of every level.
    assert (np.diff(marked.astype(int)) == 1).sum() >= len(prediction.levels)


def test_thresholds_change_the_content_version(calibrated, tiny_bundle: Path) -> None:
    assert read_bundle(calibrated).manifest.version != read_bundle(tiny_bundle).manifest.version


def test_a_bundle_without_thresholds_still_loads(tiny_bundle: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    assert manifest.novelty is None
    assert manifest.temperature == {"": 1.0, "Animal": 1.0, "Animal/Ape": 1.0}


def test_an_unknown_score_is_refused(calibrated, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(calibrated, broken)
    content = json.loads((broken / "manifest.json").read_text())
    content["novelty"]["score"] = "guess"
    (broken / "manifest.json").write_text(json.dumps(content))
    lines = (broken / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((broken / "manifest.json").read_bytes()).hexdigest()
    kept = [line for line in lines if not line.endswith("  manifest.json")]
    (broken / "SHA256SUMS").write_text("\n".join([*kept, f"{digest}  manifest.json"]) + "\n")
    with pytest.raises(BundleError, match=r"novelty\.score"):
        read_bundle(broken)

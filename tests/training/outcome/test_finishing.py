"""A finished run: what its files say agrees with the network and the data, whatever the classes are called."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protoserve.data.dataset import read_split, read_taxonomy
from protoserve.images.fitting import fit
from protoserve.networks.model_file import load_network
from protoserve.run.folder import Run, open_run
from training.config import parse_config, read_config
from training.outcome.finishing import SAMPLES, write_config, write_history


@pytest.fixture(scope="module")
def run(counted_run: Path) -> Run:
    return open_run(counted_run)


def test_a_class_named_like_a_broken_formula_breaks_neither_run_nor_figure(run: Run) -> None:
    analysis = run.analysis()
    assert analysis is not None
    assert "$_{2$" in {node.name for node in analysis.nodes}
    assert run.model.is_file()
    for name in ("confusion.png", "calibration.png", "curves.png", "counts.png"):
        with Image.open(run.directory / name) as picture:
            picture.load()


def test_the_test_split_has_the_accuracy_of_the_network(run: Run, awkward_data: Path) -> None:
    network, description, _ = load_network(run.model)
    dataset = read_split(awkward_data, "test", read_taxonomy(awkward_data))
    right = 0
    for image in range(len(dataset)):
        array = fit(dataset.picture(image), description.input).array
        with torch.inference_mode():
            log_probability = network(torch.from_numpy(array[None])).log_probability[0]
        leaves = list(dataset.taxonomy.leaves)
        right += int(log_probability[leaves].argmax()) == dataset.leaves[image]
    scores = run.metrics().test
    assert scores is not None
    assert scores.images == len(dataset)
    assert scores.accuracy["leaf"] == pytest.approx(right / len(dataset))


def test_every_split_has_its_scores_confusion_temperatures_and_thresholds(run: Run) -> None:
    metrics, confusion = run.metrics(), run.confusion()
    assert list(metrics.of()) == ["selection", "validation", "test"]
    assert metrics.calibration is not None
    assert metrics.novelty is not None
    assert confusion is not None
    for split, scores in metrics.of().items():
        change = getattr(metrics.calibration, split)
        assert change.after.expected_calibration_error == pytest.approx(scores.expected_calibration_error)
        assert 0 <= getattr(metrics.novelty, split).known_throughout <= 1
        at_root = getattr(confusion, split)[""]
        assert sum(map(sum, at_root)) == scores.images
        assert sum(at_root[child][child] for child in range(len(at_root))) == round(
            scores.images * scores.siblings[""].accuracy
        )


def test_provenance_names_the_data_the_seed_and_the_configuration(run: Run, awkward_data: Path) -> None:
    provenance = run.provenance()
    train = read_split(awkward_data, "train", read_taxonomy(awkward_data))
    assert provenance.data is not None
    assert provenance.data.fingerprint == train.fingerprint()
    assert provenance.images is not None
    assert provenance.images.fit + provenance.images.selection == len(train)
    assert provenance.config["name"] == "counted"
    assert provenance.seed == provenance.config["seed"] == 0
    assert provenance.left_out == {}


def test_samples_are_pictures_of_the_selection_then_of_the_prototypes_sources(run: Run, awkward_data: Path) -> None:
    _, _, sources = load_network(run.model)
    assert sources is not None
    images = list(dict.fromkeys(source.image for source in sources))
    selection = run.metrics().selection
    assert selection is not None
    samples = run.samples()
    assert len(samples) == min(SAMPLES, selection.images) + min(SAMPLES, len(images))
    last = np.asarray(Image.open(awkward_data / images[-1]).convert("RGB"))
    resized = np.asarray(Image.fromarray(last).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(samples[-1].astype(int) - resized).mean() < 2


def test_history_has_a_row_per_step_and_a_column_per_figure(tmp_path: Path) -> None:
    write_history(
        [{"step": 0, "stage": "warm", "total": 2.0}, {"step": 1, "stage": "project", "distinct": 9}], tmp_path
    )
    with (tmp_path / "history.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"step": "0", "stage": "warm", "total": "2.0", "distinct": ""},
            {"step": "1", "stage": "project", "total": "", "distinct": "9"},
        ]


def test_the_written_configuration_reads_back(tmp_path: Path) -> None:
    config = parse_config({"name": "tiny", "joint": {"epochs": 7}}, "test")
    write_config(config, tmp_path)
    assert read_config(tmp_path / "config.yaml") == config
    assert "patience" in (tmp_path / "config.yaml").read_text()  # defaults are written, too


# ---- a run that leaves classes out -----------------------------------------------------------------------------------


def test_the_run_records_what_it_left_out_and_its_thresholds(left_out_run: Path, left_out: tuple[str, ...]) -> None:
    provenance = json.loads((left_out_run / "provenance.json").read_text())
    assert provenance["left_out"] == {leaf: leaf for leaf in left_out}
    metrics = json.loads((left_out_run / "metrics.json").read_text())
    novelty, calibration = metrics["novelty"], metrics["calibration"]
    assert novelty["score"] == "support" and novelty["true_positive_rate"] == 0.95
    assert set(novelty["thresholds"]) == set(calibration["temperature"])
    # The thresholds come from these images, of which they accept at least the share that they state.
    assert novelty["selection"]["known_at_parents"] >= 0.95
    assert 0.0 <= novelty["test"]["known_throughout"] <= novelty["test"]["known_at_parents"] <= 1.0


def test_calibration_is_in_the_run(left_out_run: Path) -> None:
    metrics = json.loads((left_out_run / "metrics.json").read_text())
    calibration = metrics["calibration"]
    before, after = (
        calibration["selection"][moment]["negative_log_likelihood"]["leaf"] for moment in ("before", "after")
    )
    assert after <= before
    for score in ("negative_log_likelihood", "expected_calibration_error"):
        assert metrics["test"][score] == pytest.approx(calibration["test"]["after"][score])
    for picture in ("calibration.png", "confusion.png"):
        assert (left_out_run / picture).read_bytes().startswith(b"\x89PNG")
    confusion = json.loads((left_out_run / "confusion.json").read_text())["test"]
    assert sum(map(sum, confusion[""])) == metrics["test"]["images"]
    stages = (left_out_run / "history.csv").read_text()
    assert stages.index("calibrate") < stages.index("novelty")

"""`ablate`: which trainings it makes, its table and figure, and that it does nothing twice."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from protoserve.errors import InputError
from training.ablation import ablate, markdown, variants, with_epochs
from training.config import Config, parse_config

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "batch": 40,
    "image": {"height": 20, "width": 16, "resize": "stretch"},
    "model": {"kind": "autoencoder"},
    "data": {"hold_out": 0.2},
    "autoencoder": {"channels": [6, 3], "prototypes": 5, "epochs": 2, "learning_rate": 0.01},
}


def config() -> Config:
    return parse_config(CONFIG, "test")


def test_an_autoencoder_is_trained_without_r1_and_without_r2() -> None:
    found = variants(config())
    assert [(variant.name, variant.label) for variant in found] == [
        ("both", "R1 and R2 on"),
        ("without-prototype-near-code", "R1 off"),
        ("without-code-near-prototype", "R2 off"),
    ]
    weights = [
        (variant.config.autoencoder.prototype_near_code, variant.config.autoencoder.code_near_prototype)
        for variant in found
    ]
    assert weights == [(1, 1), (0, 1), (1, 0)]
    assert found[0].config == config()


def test_prototype_networks_are_trained_without_clust_and_without_sep() -> None:
    found = variants(parse_config({"name": "tiny"}, "test"))
    assert [variant.label for variant in found] == ["Clust and Sep on", "Clust off", "Sep off"]
    assert [(variant.config.loss.cluster, variant.config.loss.separation) for variant in found] == [
        (0.2, 0.02),
        (0, 0.02),
        (0.2, 0),
    ]


def test_a_term_that_is_off_can_t_be_ablated() -> None:
    with pytest.raises(InputError, match=r"loss\.separation is 0 already"):
        variants(parse_config({"name": "tiny", "loss": {"separation": 0}}, "test"))


def test_epochs_are_those_of_the_kind() -> None:
    assert with_epochs(config(), 7).autoencoder.epochs == 7
    assert with_epochs(parse_config({"name": "tiny"}, "test"), 7).joint.epochs == 7


def run(out: Path, data: Path, given: Config) -> tuple[list[dict[str, str | float]], str]:
    said = io.StringIO()
    rows = ablate(given, data, out, device="cpu", console=Console(file=said, width=200))
    return rows, said.getvalue()


def test_three_runs_give_one_table_and_one_figure_once(tiny_idx: Path, tmp_path: Path) -> None:
    rows, said = run(tmp_path / "out", tiny_idx, config())
    assert [row["variant"] for row in rows] == ["R1 and R2 on", "R1 off", "R2 off"]
    assert said.count("autoencoder 2/2") == 3
    for row, name in zip(rows, ("both", "without-prototype-near-code", "without-code-near-prototype"), strict=True):
        metrics = json.loads((tmp_path / "out" / name / "metrics.json").read_text())
        assert row["leaf, %"] == pytest.approx(100 * metrics["test"]["accuracy"]["leaf"])
        assert row["prototype to code"] == metrics["autoencoder"]["prototype to code"]
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == rows
    with (tmp_path / "out" / "ablation.csv").open(newline="") as stream:
        stored = list(csv.DictReader(stream))
    assert [float(row["leaf, %"]) for row in stored] == [row["leaf, %"] for row in rows]
    assert (tmp_path / "out" / "ablation.md").read_text() == markdown(rows)
    with Image.open(tmp_path / "out" / "prototypes.png") as picture:
        picture.load()

    again, said = run(tmp_path / "out", tiny_idx, config())
    assert again == rows
    assert "/2]" not in said
    assert said.count("finished already") == 3

    with pytest.raises(InputError, match=r"both: holds a run of another configuration; give another --out"):
        run(tmp_path / "out", tiny_idx, with_epochs(config(), 3))

"""The report of a run: alone it shows everything, whatever the names, and says what a run does not hold."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from protoserve.cli.root import build_app
from protoserve.errors import InputError
from protoserve.reporting.page import report_page
from protoserve.run.records import Analysis
from protoserve.run.similarities import read_similarities
from tests.training.conftest import AWKWARD
from training.outcome.report import at_border, run_report


def data_of(html: str) -> dict[str, Any]:
    """What the page's script draws from."""
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    document: dict[str, Any] = json.loads(found)
    return document


def text_of(html: str) -> str:
    """The text of the page."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html.partition('<script id="data"')[0])).split())


@pytest.fixture(scope="module")
def html(counted_run: Path) -> str:
    return report_page(run_report(counted_run))


def analysis_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "analysis.json").read_text())
    return content


def test_every_prototype_is_there_with_its_pictures_and_patches(html: str, counted_run: Path) -> None:
    analysis, data = analysis_of(counted_run), data_of(html)
    assert [one["id"] for one in data["prototypes"]] == [one["id"] for one in analysis["prototypes"]]
    for shown, known in zip(data["prototypes"], analysis["prototypes"], strict=True):
        assert shown["node"] == known["child"] and shown["purity"] == list(known["purity"].values())
        own = [patch for patch in known["patches"] if patch["box"] == known["source"]["box"]]
        others = [patch for patch in known["patches"] if not (patch in own and patch["image"] == shown["image"])]
        assert [data["images"][near[1]][0] for near in shown["near"]] == [
            patch["image"] for patch in others[: len(shown["near"])]
        ]
        assert len(shown["near"]) == 9
        assert all(0 <= near[0] < len(data["pictures"]) for near in shown["near"])
        with Image.open(io.BytesIO(base64.b64decode(data["pictures"][shown["picture"]]))) as picture:
            assert max(picture.size) <= 72
        separation = known["separation"]
        expected = [separation["own"], separation["siblings"], separation["effect"]]
        assert shown["separation"] == pytest.approx(expected, abs=0.006)
        assert ("always on" in shown["notes"]) == separation["always_on"]
    # Prototypes of one class stand near the same patches, which are kept once.
    assert len(data["pictures"]) < 10 * len(data["prototypes"])


def test_prototypes_say_which_siblings_they_tell_apart(html: str, counted_run: Path) -> None:
    kept = read_similarities(counted_run, len(analysis_of(counted_run)["prototypes"]))
    assert kept is not None
    names = [node["name"] for node in analysis_of(counted_run)["nodes"]]
    leaves = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
    shown = next(one for one in data_of(html)["prototypes"] if one["node"].startswith("R&D/"))
    own = kept.fit.similarity[kept.fit.leaves == leaves.index(shown["node"]), shown["id"]].astype(float)
    assert len(shown["apart"]) == 2
    for label, effect in shown["apart"]:
        other = kept.fit.similarity[kept.fit.leaves == leaves.index(f"R&D/{label}"), shown["id"]].astype(float)
        expected = (own.mean() - other.mean()) / np.sqrt((own.var() + other.var()) / 2)
        assert effect == pytest.approx(expected, abs=0.06)


def test_names_are_escaped(html: str) -> None:
    assert "<blink" not in html
    found = {node for table in data_of(html)["confusions"] for node in table["nodes"]}
    assert found <= {*AWKWARD, "R&D"}


def test_the_metrics_are_on_the_page(html: str, counted_run: Path) -> None:
    text = text_of(html)
    metrics = json.loads((counted_run / "metrics.json").read_text())
    for split in ("test", "selection"):
        assert f"{100 * metrics[split]['accuracy']['leaf']:.2f}" in text
    for row in metrics["counts"]["rounds"]:
        assert f"{row['prototypes']}" in text
    assert "Temperatures per parent" in text
    for figure in ("number of prototypes", "Mean similarity of every prototype to its own class and to the siblings"):
        assert re.search(rf'<svg role="img" aria-label="[^"]*{figure}', html)
    assert "http:" not in html and "https:" not in html and "@import" not in html


def test_the_analysis_agrees_with_the_network(counted_run: Path) -> None:
    """A projected prototype is a training cell: that patch, at distance 0, comes first."""
    analysis = analysis_of(counted_run)
    for prototype in analysis["prototypes"]:
        patches = prototype["patches"]
        assert len(patches) == 10
        assert patches[0]["distance"] == pytest.approx(0.0, abs=1e-10)
        zero = [patch for patch in patches if patch["distance"] <= 1e-10]
        assert {(prototype["source"]["image"], *prototype["source"]["box"])} <= {
            (patch["image"], *patch["box"]) for patch in zero
        }
        for patch in patches:
            assert patch["own"] == (f"{patch['leaf']}/".startswith(f"{prototype['child']}/"))
        nearest = prototype["purity"]["nearest"]
        assert prototype["purity"]["own"] == sum(patch["own"] for patch in patches[:nearest])


def test_missing_parts_of_a_run_are_noted(counted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(counted_run, run)
    for name in ("analysis.json", "confusion.json", "confusion.png", "calibration.png", "similarities.npz"):
        (run / name).unlink()
    metrics = json.loads((run / "metrics.json").read_text())
    kept = {
        split: {key: metrics[split][key] for key in ("images", "accuracy", "macro_accuracy")} for split in ("test",)
    }
    (run / "metrics.json").write_text(json.dumps(kept))
    text = text_of(report_page(run_report(run)))
    assert "no prototypes with their nearest patches" in text
    assert "To see the pictures behind these numbers" in text
    assert "no measure of calibration" in text


def test_a_missing_picture_is_named(counted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "torn"
    shutil.copytree(counted_run, run)
    (run / "patches" / "0000.webp").unlink()
    with pytest.raises(InputError, match=r"patches/0000\.webp: can't read the picture"):
        run_report(run)


def test_the_command_writes_the_page_in_the_run_or_to_a_given_file(counted_run: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    file = tmp_path / "page.html"
    ended = runner.invoke(build_app(), ["report", str(counted_run), "-o", str(file)])
    assert ended.exit_code == 0, ended.output
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(file) in ended.output
    ended = runner.invoke(build_app(), ["report", str(counted_run), "--data", str(tmp_path), "-o", str(file)])
    assert ended.exit_code and "need both: --data DIR and --bundle BUNDLE" in str(ended.output)


# ---- how well prototypes tell classes apart --------------------------------------------------------------------------


def analysis(*prototypes: dict[str, Any], rows: int = 4, columns: int = 5) -> Analysis:
    """An analysis of prototypes that differ from a default in the fields given."""
    box, patch_box = (0, 0, 8, 8), (8, 8, 16, 16)
    common = {
        "child": "Animal/Ape",
        "parent": "Animal",
        "weight": 1.0,
        "source": {"image": "a.png", "box": box, "cell": 6},
        "purity": {"own": 1, "nearest": 1},
        "patches": [
            {"image": "a.png", "leaf": "Animal/Ape", "cell": 7, "box": patch_box, "distance": 0.0, "own": True},
            {"image": "a.png", "leaf": "Animal/Ape", "cell": 0, "box": box, "distance": 0.0, "own": True},
        ],
    }
    listed = [{"id": number, **common, **changed} for number, changed in enumerate(prototypes)]
    sizes = {"format": 1, "kind": "hierarchical", "images": 2, "rows": rows, "columns": columns, "tile": 80}
    return Analysis.model_validate({**sizes, "nodes": [], "prototypes": listed})


@pytest.mark.parametrize(
    ("cell", "border"), [(0, True), (4, True), (5, True), (6, False), (8, False), (9, True), (13, False), (17, True)]
)
def test_a_border_prototype_lies_in_an_outer_row_or_column(cell: int, border: bool) -> None:
    found = analysis({"source": {"image": "a.png", "box": (0, 0, 8, 8), "cell": cell}})
    assert at_border(found.prototypes[0], found) is border


def test_an_older_run_tells_the_cell_by_the_patch_with_the_same_box() -> None:
    found = analysis(
        {"source": {"image": "a.png", "box": (0, 0, 8, 8)}},
        {"source": {"image": "a.png", "box": (8, 8, 16, 16)}},
        {"source": {"image": "b.png", "box": (0, 0, 8, 8)}},
    )
    assert [at_border(prototype, found) for prototype in found.prototypes] == [True, False, False]


def test_a_feature_map_without_inner_cells_has_no_border() -> None:
    found = analysis({"source": {"image": "a.png", "box": (0, 0, 8, 8), "cell": 0}}, rows=2)
    assert not at_border(found.prototypes[0], found)


def test_a_run_of_an_older_version_has_no_separation(counted_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(counted_run, tmp_path / "old")
    (run / "similarities.npz").unlink()
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["separation"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    content = analysis_of(run)
    for prototype in content["prototypes"]:
        del prototype["separation"]
    (run / "analysis.json").write_text(json.dumps(content))
    html = report_page(run_report(run))
    assert "always on" not in text_of(html) and "median effect" not in html
    assert all(one["apart"] == [] and one["separation"] is None for one in data_of(html)["prototypes"])

"""The report: alone it shows everything, whatever the names, and says what a run does not hold."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from protoserve.cli.root import build_app
from protoserve.errors import InputError
from protoserve.run.folder import open_run
from protoserve.run.records import Analysis
from training.outcome.report import at_border, group_separations, render, write_report


class Page(HTMLParser):
    """Every tag's attributes, the text, and what is in <style> and <script>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.code: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        (self.code if self.inside in ("style", "script") else self.text).append(data)


@pytest.fixture(scope="module")
def html(counted_run: Path) -> str:
    return render(open_run(counted_run))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def analysis_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "analysis.json").read_text())
    return content


def test_nothing_is_fetched(page: Page) -> None:
    links = [
        (tag, value)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href")
    ]
    assert links
    for tag, value in links:
        assert value is not None
        assert value.startswith("data:image/") or (tag in ("a", "use") and value.startswith("#")), (tag, value[:60])
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    for code in page.code:
        assert "@import" not in code
        assert "http" not in code
        assert all(target.startswith(("data:", "#")) for target in re.findall(r"url\(['\"]?([^)'\"]*)", code))
    policy = [attributes for tag, attributes in page.tags if "http-equiv" in attributes]
    assert "default-src 'none'" in (policy[0]["content"] or "")


def test_anchors_lead_somewhere_and_identities_are_unique(page: Page) -> None:
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    anchors = {attributes["href"] for tag, attributes in page.tags if tag in ("a", "use")}
    assert {f"#{identity}" for identity in identities} >= anchors


def test_every_prototype_is_there_with_its_pictures_and_patches(page: Page, counted_run: Path) -> None:
    analysis = analysis_of(counted_run)
    articles = [str(attributes["id"]) for tag, attributes in page.tags if tag == "article"]
    assert sorted(articles) == sorted(f"prototype-{prototype['id']}" for prototype in analysis["prototypes"])
    titles = [str(attributes["title"]) for tag, attributes in page.tags if tag == "li" and "title" in attributes]
    expected = [patch["image"] for prototype in analysis["prototypes"] for patch in prototype["patches"]]
    assert sorted(titles) == sorted(expected)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) >= 2 * len(articles)
    assert all("alt" in attributes for attributes in pictures)


def test_names_are_escaped(page: Page, html: str) -> None:
    assert "blink" not in {tag for tag, _ in page.tags}
    assert "<blink" not in html
    text = " ".join(page.text)
    for name in ("R&D/<blink>x", "R&D/'y\"", "R&D/{{ z }}"):
        assert name in text
    parents = {attributes.get("data-parent") for tag, attributes in page.tags if tag == "section"}
    assert "R&D" in parents


def test_the_metrics_are_on_the_page(page: Page, counted_run: Path) -> None:
    text = " ".join(" ".join(page.text).split())
    metrics = json.loads((counted_run / "metrics.json").read_text())
    for split in ("test", "selection"):
        assert f"{100 * metrics[split]['accuracy']['leaf']:.2f}" in text
    for row in metrics["counts"]["rounds"]:
        assert f"{row['prototypes']}" in text
    assert "Temperatures per parent" in text
    figures = {attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"}
    assert any("number of prototypes" in (figure or "") for figure in figures)


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
    for name in ("analysis.json", "confusion.json", "confusion.png", "calibration.png"):
        (run / name).unlink()
    metrics = json.loads((run / "metrics.json").read_text())
    kept = {
        split: {key: metrics[split][key] for key in ("images", "accuracy", "macro_accuracy")} for split in ("test",)
    }
    (run / "metrics.json").write_text(json.dumps(kept))
    text = " ".join(" ".join(Page(render(open_run(run))).text).split())
    assert "no prototypes with their nearest patches" in text
    assert "no confusion between siblings" in text
    assert "no measure of calibration" in text


def test_a_missing_picture_is_named(counted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "torn"
    shutil.copytree(counted_run, run)
    (run / "patches" / "0000.webp").unlink()
    with pytest.raises(InputError, match=r"patches/0000\.webp: can't read the picture"):
        write_report(run, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_command_writes_the_page_in_the_run_or_to_a_given_file(counted_run: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    file = tmp_path / "page.html"
    ended = runner.invoke(build_app(), ["report", str(counted_run), "-o", str(file)])
    assert ended.exit_code == 0, ended.output
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(file) in ended.output
    with pytest.raises(InputError, match="there is no folder"):
        write_report(counted_run, tmp_path / "none" / "page.html")


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


def test_prototypes_are_counted_per_parent() -> None:
    def separation(effect: float) -> dict[str, Any]:
        return {"separation": {"own": 2.0, "siblings": 1.0, "effect": effect, "always_on": effect < 0.5}}

    found = group_separations(
        analysis(
            {"parent": "", **separation(1.0)},
            separation(0.25),
            {**separation(0.75), "source": {"image": "a.png", "box": (0, 0, 8, 8), "cell": 19}},
            {"parent": "Tool"},
        )
    )
    assert [(row.parent, row.prototypes, row.telling, row.always_on, row.border) for row in found] == [
        ("", 1, 1, 0, 0),
        ("Animal", 2, 0, 1, 1),
    ]
    assert found[1].effect == pytest.approx(0.5)


def test_every_prototype_has_its_means_and_flags(page: Page, counted_run: Path) -> None:
    text = " ".join(" ".join(page.text).split())
    records = analysis_of(counted_run)["prototypes"]
    measured = [record["separation"] for record in records if record["separation"]]
    assert len(measured) == len(records) > 0
    for separation in measured:
        own, siblings, effect = separation["own"], separation["siblings"], separation["effect"]
        assert f"own {own:.2f}, siblings {siblings:.2f}, effect {effect:+.2f}" in text
    flagged = [attributes for tag, attributes in page.tags if tag == "article" and "data-always-on" in attributes]
    assert len(flagged) == sum(separation["always_on"] for separation in measured)
    figures = {attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"}
    assert "Mean similarity of every prototype to its own class and to the siblings" in figures


def test_a_run_of_an_older_version_has_no_flags(counted_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(counted_run, tmp_path / "old")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["separation"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    content = analysis_of(run)
    for prototype in content["prototypes"]:
        del prototype["separation"]
    (run / "analysis.json").write_text(json.dumps(content))
    html = render(open_run(run))
    assert "always on" not in html.partition("<script>")[0] and "median effect" not in html

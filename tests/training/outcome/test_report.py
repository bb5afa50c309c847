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
from training.outcome.report import render, write_report


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

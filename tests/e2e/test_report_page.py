"""The report in a browser: it opens fast, every picture is drawn, and its links lead to mistakes and prototypes."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from protoserve.cli.root import main
from protoserve.pages.crops import webp
from protoserve.reporting.page import Report, report_page
from protoserve.reporting.pictures import PictureStore
from protoserve.reporting.prototypes import Neighbour, ReportedPrototype
from protoserve.run.provenance import Provenance
from protoserve.run.records import Metrics, Purity, Separation
from tests.bundles import LEAVES
from tests.e2e.page_browser import open_page, shoot, wait_for

PHONE = {"width": 375, "height": 667}


@pytest.fixture(scope="module")
def report_file(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a random bundle, which gets most of these pictures wrong."""
    folder = tmp_path_factory.mktemp("report")
    generator = np.random.default_rng(3)
    for leaf in LEAVES:
        (folder / "noise" / "test" / leaf).mkdir(parents=True)
        for number in range(4):
            noise = generator.integers(0, 255, (6, 9, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC)
            picture.save(folder / "noise" / "test" / leaf / f"{number}.png")
    file = folder / "report.html"
    options = ["--data", str(folder / "noise"), "--device", "cpu", "-o", str(file)]
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tiny_bundle), *options])
    assert ended.value.code == 0
    return file


def all_pictures_drawn(page: Any) -> None:
    wait_for(page, "[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_mistakes_and_prototypes_are_a_click_away(browser: Any, report_file: Path, scheme: str) -> None:
    # The page answers to its address and to what opens in later turns of its loop, so expectations wait.
    from playwright.sync_api import expect

    page = open_page(browser, report_file.as_uri(), color_scheme=scheme)
    kinds = page.locator("#kinds a")
    kinds.last.click()
    words = kinds.last.inner_text().split(" taken for ")
    expect(page.locator("#gallery h3")).to_contain_text(f"{words[0]} taken for {words[1]}")
    card = page.locator(".mistake").first
    card.locator("summary").click()
    expect(page.locator(".explanation")).to_have_count(2)
    assert page.locator(".explanation .frame").count() > 0
    all_pictures_drawn(page)
    shoot(page, f"report-mistake-{scheme}", full_page=True)
    link = page.locator(".explanation a").first
    number = link.inner_text().removeprefix("prototype ")
    link.click()
    chosen = page.locator(".prototype.chosen")
    expect(chosen).to_have_attribute("id", f"p{number}")
    assert page.url.endswith(f"#prototype={number}")
    expect(chosen).to_contain_text("tells")
    page.fill("#finder input", "Lion")
    expect(page.locator("#classes a")).to_have_text(["Lion"])
    page.locator("#classes a").click()
    expect(page.locator("#prototype-list h3")).to_contain_text("Animal › Lion")
    all_pictures_drawn(page)
    assert page.complaints == []
    page.close()


def test_the_report_fits_on_a_phone_and_is_accessible(browser: Any, report_file: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for viewport in (PHONE, {"width": 1280, "height": 900}):
        page = open_page(browser, report_file.as_uri(), viewport=viewport)
        page.locator(".mistake summary").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        shoot(page, f"report-{viewport['width']}", full_page=True)
        found = axe.run(page).response["violations"]
        assert found == [], [(problem["id"], problem["nodes"][0]["html"]) for problem in found]
        page.close()


def test_a_report_of_a_thousand_prototypes_opens_in_two_seconds(browser: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    store = PictureStore()
    noise = generator.integers(0, 255, (9, 9, 3), dtype=np.uint8)
    tile = Image.fromarray(noise).resize((56, 56), Image.Resampling.BICUBIC)
    # As many pictures as a run has, of the size that those of photographs have.
    store.encoded = [base64.b64encode(webp(tile, 80)).decode()] * 6000
    prototypes = [
        ReportedPrototype(
            id=number,
            child=f"Kind {number // 50}/Class {number // 10}",
            parent=f"Kind {number // 50}",
            weight=1.0,
            image=f"train/{number}.jpg",
            picture=number,
            purity=Purity(own=5, nearest=6),
            separation=Separation(own=2.0, siblings=1.0, effect=1.5, always_on=False),
            apart=[(f"Class {place}", 2.0 - place) for place in range(4)],
            neighbours=[
                Neighbour(number * 5 + place, "Kind 1/Class 2", True, f"train/{place}.jpg") for place in range(5)
            ],
        )
        for number in range(1000)
    ]
    report = Report("thousand", "A thousand.", Metrics(), Provenance(), "", store, prototypes, "Patches.")
    file = tmp_path / "report.html"
    file.write_text(report_page(report), encoding="utf-8")
    assert 5e6 < file.stat().st_size < 10e6
    took = []
    # The best of three: other tests may run beside this one.
    for _ in range(3):
        page = browser.new_page()
        began = time.monotonic()
        page.goto(file.as_uri())
        all_pictures_drawn(page)
        took.append(time.monotonic() - began)
        assert page.locator(".prototype").count() == 10 and page.locator("#classes a").count() == 100
        page.close()
        if took[-1] <= 2.0:
            break
    assert min(took) <= 2.0

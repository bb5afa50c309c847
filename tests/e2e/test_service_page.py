"""The service's page at `/` in a real browser, compared with the service's own answer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.serving import Server, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with serving(tiny_bundle, tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture(scope="module")
def page(server: Server, photograph: Path) -> Iterator[Any]:
    """The page after it was given the photograph."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"],
        )
        opened = browser.new_page()
        opened.set_default_timeout(120_000)
        opened.complaints = []
        opened.on("console", lambda line: opened.complaints.append(line.text) if line.type == "error" else None)
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.goto(server.address)
        opened.set_input_files("#file", str(photograph))
        opened.wait_for_selector(".level")
        yield opened
        browser.close()


@pytest.fixture(scope="module")
def answer(server: Server, photograph: Path) -> Any:
    return httpx.post(f"{server.address}/v1/predict?top_k=5", content=photograph.read_bytes()).json()


def cards(level: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The pieces of evidence that have a card: those that do not round to 0."""
    return [piece for piece in level[kind] if abs(piece["contribution"]) >= 0.005]


def test_every_level_has_its_evidence_for_and_against(page: Any, answer: Any) -> None:
    levels = page.locator(".level")
    assert levels.count() == len(answer["levels"])
    for number, level in enumerate(answer["levels"]):
        for kind in ("evidence", "against"):
            shown = levels.nth(number).locator(f".{kind} .item")
            assert shown.count() == len(cards(level, kind))
            for text, piece in zip(shown.all_text_contents(), cards(level, kind), strict=True):
                sign = "−" if piece["contribution"] < 0 else "+"
                assert text.startswith(f"{sign}{abs(piece['contribution']):.2f}")
                absent = piece["similarity"] < piece["usual"]
                assert text.endswith("less than usual like this" if absent else "looks like this")
    assert any(cards(level, "against") for level in answer["levels"])


def test_the_sum_closes_in_what_is_shown(page: Any, answer: Any) -> None:
    sums = page.locator(".sum").all_text_contents()
    assert len(sums) == sum(level["logit"] is not None for level in answer["levels"])
    for line in sums:
        figures = re.findall(r"[+−]?\d+\.\d\d", line.partition("shown")[0])
        score, *parts = [float(figure.replace("−", "-")) for figure in figures]
        assert len(parts) == 4 and sum(parts) == pytest.approx(score, abs=1e-9)


def test_a_card_against_can_be_chosen(page: Any) -> None:
    card = page.locator(".against .item").first
    card.click()
    assert page.locator(".against .item").first.get_attribute("aria-pressed") == "true"
    page.locator(".against .item").first.click()
    assert page.locator(".item[aria-pressed=true]").count() == 0


def test_nothing_breaks_the_pages_own_policy(page: Any) -> None:
    assert not page.complaints

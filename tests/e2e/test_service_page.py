"""The service's page at `/` in a real browser, compared with the service's own answer."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api_keys import create_key
from tests.e2e.serving import Server, proxied, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with serving(tiny_bundle, tmp_path_factory.mktemp("page")) as found:
        yield found


@contextmanager
def opened_browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


def open_page(browser: Any, address: str) -> Any:
    """Open the page; `complaints` collects the errors of its scripts and of its own policy."""
    opened = browser.new_page()
    opened.set_default_timeout(120_000)
    opened.complaints = []
    opened.on("console", lambda line: opened.complaints.append(line.text) if line.type == "error" else None)
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(address)
    return opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser: Any, server: Server, photograph: Path) -> Any:
    """The page after it was given the photograph."""
    opened = open_page(browser, server.address)
    opened.set_input_files("#file", str(photograph))
    opened.wait_for_selector(".level")
    return opened


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


def wait_for(page: Any, condition: str) -> None:
    """Wait until a JavaScript expression is true. The page's policy forbids what Playwright's own function does."""
    from playwright.sync_api import Error

    def holds() -> bool:
        try:
            return bool(page.evaluate(condition))
        except Error as error:
            # The page was left while it was asked.
            if "navigation" not in str(error):
                raise
            return False

    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def shown_pictures(page: Any) -> list[int]:
    """The widths of the prototypes' pictures, once the browser has tried to load all of them; 0 where it could not."""
    page.evaluate("document.querySelectorAll('.evidence img').forEach((image) => { image.loading = 'eager'; })")
    wait_for(page, "[...document.querySelectorAll('.evidence img')].every((image) => image.src && image.complete)")
    widths: list[int] = page.eval_on_selector_all(".evidence img", "all => all.map((image) => image.naturalWidth)")
    return widths


@pytest.mark.parametrize("slash", ["", "/"])
def test_behind_a_proxy_with_a_prefix_the_page_works(
    browser: Any, server: Server, photograph: Path, slash: str
) -> None:
    with proxied(server, "/models/tiny") as address:
        page = open_page(browser, address + slash)
        page.set_input_files("#file", str(photograph))
        page.wait_for_selector(".level")
        assert page.inner_text("#model").startswith("tiny")
        widths = shown_pictures(page)
        assert widths and all(widths)
        links = page.eval_on_selector_all("nav a", "all => all.map((link) => link.href)")
        assert links == [f"{address}/{path}" for path in ("openapi.json", "v1/taxonomy", "v1/prototypes")]
        assert not page.complaints
        page.close()


def test_with_api_keys_the_page_asks_for_one_and_works(
    browser: Any, tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    secret, key = create_key("browser")
    with serving(tiny_bundle, tmp_path, PROTOSERVE_API_KEYS=f"{key.name}:{key.hash}") as server:
        page = open_page(browser, server.address)
        page.wait_for_selector("#keyform:not([hidden])")
        page.fill("#key", secret)
        page.click("#keyform button")
        wait_for(page, "document.getElementById('model').textContent.startsWith('tiny')")
        assert not page.is_visible("#keyform")
        page.set_input_files("#file", str(photograph))
        page.wait_for_selector(".level")
        widths = shown_pictures(page)
        assert widths and all(widths)
        # It keeps the key while its tab lives.
        page.reload()
        wait_for(page, "document.getElementById('model').textContent.startsWith('tiny')")
        page.click("nav a:nth-child(2)")
        wait_for(page, "location.protocol === 'blob:' && document.readyState === 'complete'")
        assert '"depth"' in page.content()
        # The first request, without the key, is the only one that was refused.
        assert len(page.complaints) == 1 and "401" in page.complaints[0]
        page.close()


def test_a_heat_map_is_drawn(page: Any) -> None:
    page.check("#heat")
    wait_for(page, "state.prediction?.levels.some((level) => level.evidence.some((piece) => piece.map))")
    page.locator(".evidence .item").first.click()
    before = page.eval_on_selector("#canvas", "canvas => canvas.toDataURL()")
    page.uncheck("#heat")
    wait_for(page, "!state.prediction?.levels.some((level) => level.evidence.some((piece) => piece.map))")
    page.locator(".evidence .item").first.click()
    assert page.eval_on_selector("#canvas", "canvas => canvas.toDataURL()") != before
    assert not page.complaints

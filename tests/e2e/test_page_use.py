"""How the service's page at `/` is used: by keyboard, on phones, behind proxies, with keys, to take answers along."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from service.api_keys import create_key
from tests.e2e.page_browser import (
    SHOTS,
    asked,
    open_page,
    photographs,
    shoot,
    shown_pictures,
    wait_for,
    wait_for_answer,
)
from tests.e2e.serving import Server, proxied, serving

PHONE = {"width": 375, "height": 667}


# ---- the answer goes out ---------------------------------------------------------------------------------------------


def copied(page: Any, form: str) -> str:
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("#share summary")
    page.click(f"[data-share={form}]")
    wait_for(page, "window.copied")
    text: str = page.evaluate("(() => { const text = window.copied; window.copied = ''; return text; })()")
    return text


def test_the_answer_is_copied_as_json_a_command_python_and_a_link(
    fresh: Any, browser: Any, page_server: Server, answer: Any
) -> None:
    fresh.click("#options summary")
    fresh.fill("#top_k", "2")
    fresh.dispatch_event("#top_k", "change")
    wait_for(fresh, "location.hash === '#top_k=2'")
    wait_for_answer(fresh, fresh.given.name)
    shorter = asked(page_server, fresh.given.read_bytes(), top_k=2)
    assert json.loads(copied(fresh, "json")) == shorter
    command = copied(fresh, "curl")
    done = subprocess.run(["bash", "-c", command], cwd=fresh.given.parent, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout) == shorter
    python = copied(fresh, "python").replace("print(prediction.path)", "paths.append(prediction.path)")
    paths: list[Any] = []
    here = Path.cwd()
    os.chdir(fresh.given.parent)
    try:
        exec(python, {"paths": paths})
    finally:
        os.chdir(here)
    assert paths == [answer["path"]]
    again = open_page(browser, copied(fresh, "link"))
    wait_for(again, "document.getElementById('model').textContent.trim()")
    assert again.input_value("#top_k") == "2"
    again.close()
    with fresh.expect_download() as download:
        fresh.click("#share summary")
        fresh.click("[data-share=png]")
    with Image.open(download.value.path()) as saved:
        assert saved.width == 2400
        if SHOTS:
            saved.save(f"{SHOTS}/saved.png")
    fresh.click("#options summary")
    fresh.fill("#top_k", "5")
    fresh.dispatch_event("#top_k", "change")
    wait_for(fresh, "location.hash === '#top_k=5'")


# ---- the packaged model ----------------------------------------------------------------------------------------------


def test_the_packaged_model_explains_its_own_pictures(browser: Any, tmp_path: Path) -> None:
    with serving(Path("demo"), tmp_path) as server:
        page = open_page(browser, server.address, viewport={"width": 1280, "height": 860}, device_scale_factor=1.5)
        for sample, name in enumerate(("Ladybird", "Cockatoo")):
            page.goto(server.address)
            page.locator("#samples button").nth(sample).click()
            page.wait_for_selector(".piece")
            assert page.text_content("#title") == name
            shoot(page, f"demo-{name}")
        assert not page.complaints
        page.close()


# ---- keyboard, sight, sizes ------------------------------------------------------------------------------------------


def press_for_file(page: Any, file: Path) -> None:
    """Press Enter where the focus is, which must ask for a file, and give it this one. A busy Chromium loses a press
    before it begins to tell of such questions, so a second one counts, too."""
    from playwright.sync_api import TimeoutError as Waited

    for seconds in (15, 60):
        with suppress(Waited):
            with page.expect_file_chooser(timeout=1000 * seconds) as chooser:
                page.keyboard.press("Enter")
            chooser.value.set_files(str(file))
            return
    pytest.fail("Enter asks for no file")


def test_the_keyboard_is_enough(browser: Any, page_server: Server, photograph: Path) -> None:
    page = open_page(browser, page_server.address)
    # Until the page knows its model, what arrives late moves the focus order.
    wait_for(page, "document.getElementById('model').textContent.trim()")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "file":
            break
    assert page.evaluate("document.activeElement.id") == "file"
    press_for_file(page, photograph)
    page.wait_for_selector(".piece")

    page.focus("[role=tab][aria-selected=true]")
    selected = page.evaluate("document.activeElement.id")
    page.keyboard.press("ArrowLeft")
    if page.locator("[role=tab]").count() > 1:
        assert page.evaluate("document.activeElement.id") != selected
        assert page.evaluate("document.activeElement.ariaSelected") == "true"
        page.keyboard.press("ArrowRight")

    # Focus shows the piece, Enter keeps it and the place, Escape leaves.
    page.locator(".pair").nth(1).focus()
    assert page.locator("#overlay .halo").count() == 1
    assert page.locator("#overlay text").text_content() == "2"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.ariaPressed") == "true"
    page.keyboard.press("ArrowUp")
    assert page.locator("#overlay text").text_content() == "1"
    page.keyboard.press("Escape")
    assert page.locator(".pair[aria-pressed=true]").count() == 0
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"
    assert not page.complaints
    page.close()


VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "is_mobile": True, "has_touch": True},
    "phone-dark": {"viewport": PHONE, "color_scheme": "dark", "reduced_motion": "reduce"},
    "contrast": {"viewport": {"width": 1000, "height": 800}, "contrast": "more"},
}


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(browser: Any, page_server: Server, photograph: Path, view: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(browser, page_server.address, **VIEWS[view])
    wait_for(page, "document.getElementById('model').textContent.trim()")

    def check(name: str) -> None:
        shoot(page, f"{view}-{name}", full_page=view in ("light", "dark"))
        found = axe.run(page).response["violations"]
        assert not found, [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]

    if view == "light":
        check("empty")
    page.set_input_files("#file", str(photograph))
    page.wait_for_selector(".piece")
    check("answer")
    if "phone" in view:
        title = page.locator("#title").bounding_box()
        assert title["y"] + title["height"] <= PHONE["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        # The picture stays in sight beside the evidence that it changes.
        page.locator(".piece").last.scroll_into_view_if_needed()
        frame, piece = page.locator("#frame").bounding_box(), page.locator(".piece").last.bounding_box()
        assert frame["y"] >= 0 and piece["y"] < PHONE["height"]
        shoot(page, f"{view}-scrolled")
    if view in ("light", "phone-dark"):
        page.goto(f"{page_server.address}/#prototypes")
        page.wait_for_selector(".cards li")
        check("prototypes")
    assert not page.complaints
    page.close()


# ---- prototypes, proxies, keys ---------------------------------------------------------------------------------------


def test_the_prototypes_are_found_by_their_node(browser: Any, page_server: Server) -> None:
    page = open_page(browser, f"{page_server.address}/#prototypes")
    page.wait_for_selector(".cards li")
    listed = httpx.get(f"{page_server.address}/v1/prototypes", params={"node": "Animal/Ape/Gibbon"}).json()[
        "prototypes"
    ]
    page.fill(".finder input", "gibbon")
    page.click(".tree a")
    wait_for(page, f"document.querySelectorAll('.cards li').length === {len(listed)}")
    for text, prototype in zip(page.locator(".cards li").all_inner_texts(), listed, strict=True):
        assert f"prototype {prototype['id']} of Gibbon" in text.replace("\n", " ")
        assert f"{prototype['weight']:.2f}".replace("-", "−") in text
    page.click(".cards a")
    page.wait_for_selector(".cards .large")
    wait_for(page, "document.querySelector('.large img').naturalWidth")
    page.click("#to-explain")
    assert page.is_visible("#invite")
    assert not page.complaints
    page.close()


@pytest.mark.parametrize("slash", ["", "/"])
def test_behind_a_proxy_with_a_prefix_the_page_works(
    browser: Any, page_server: Server, photograph: Path, slash: str
) -> None:
    with proxied(page_server, "/models/tiny") as address:
        page = open_page(browser, address + slash)
        page.set_input_files("#file", str(photograph))
        page.wait_for_selector(".piece")
        assert page.inner_text("#model").strip()
        widths = shown_pictures(page)
        assert widths and all(widths)
        assert page.get_attribute("a.document", "href") == f"{address}/openapi.json"
        page.click("#to-prototypes")
        page.wait_for_selector(".cards li")
        assert not page.complaints
        page.close()


def test_with_api_keys_the_page_asks_for_one_and_works(
    browser: Any, calibrated_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    """A picture that is too large for the service is shrunk, too."""
    secret, key = create_key("browser")
    limits = {"PROTOSERVE_MAX_BYTES": "200000", "PROTOSERVE_API_KEYS": f"{key.name}:{key.hash}"}
    with serving(calibrated_bundle, tmp_path, **limits) as server:
        page = open_page(browser, server.address)
        page.wait_for_selector("#keyform:not([hidden])")
        shoot(page, "key")
        page.fill("#key", secret)
        page.click("#keyform button")
        wait_for(page, "document.getElementById('model').textContent.includes('classes')")
        assert not page.is_visible("#keyform")
        page.set_input_files("#file", str(photograph))
        page.wait_for_selector(".piece")
        widths = shown_pictures(page)
        assert widths and all(widths)
        # It keeps the key while its tab lives.
        page.reload()
        wait_for(page, "document.getElementById('model').textContent.includes('classes')")
        large = photographs()["huge"]
        assert len(large) > 200_000
        page.set_input_files("#file", {"name": "huge.jpg", "mimeType": "image/jpeg", "buffer": large})
        page.wait_for_selector(".piece")
        assert page.inner_text("#note").startswith("Shrunk to 2048 × 1536 pixels")
        page.click("a.document")
        wait_for(page, "location.protocol === 'blob:' && document.readyState === 'complete'")
        assert '"openapi"' in page.content()
        # The first request, without the key, is the only one that was refused.
        assert len(page.complaints) == 1 and "401" in page.complaints[0]
        page.close()


def test_nothing_broke_the_pages_own_policy_or_left_the_service(page: Any) -> None:
    assert not page.complaints

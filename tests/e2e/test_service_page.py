"""The service's page at `/` in a real browser, compared with the service's own answer."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.api_keys import create_key
from tests.e2e.serving import Server, proxied, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Screenshots of every flow are kept here, to be looked at.
SHOTS = os.environ.get("PROTOSERVE_TEST_SHOTS")
PHONE = {"width": 375, "height": 667}


@pytest.fixture(scope="module")
def server(calibrated_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with serving(calibrated_bundle, tmp_path_factory.mktemp("page")) as found:
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


def open_page(browser: Any, address: str, **context: Any) -> Any:
    """Open the page; `complaints` collects the errors of its scripts and of its own policy, and requests that leave
    the service."""
    opened = browser.new_page(**context)
    opened.set_default_timeout(120_000)
    opened.complaints = []
    opened.on("console", lambda line: opened.complaints.append(line.text) if line.type == "error" else None)
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    host = re.match(r"\w+://[^/]*", address)
    assert host is not None
    own = (host[0], "blob:", "data:")
    opened.on("request", lambda request: None if request.url.startswith(own) else opened.complaints.append(request.url))
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
    opened = open_page(browser, server.address, viewport={"width": 1440, "height": 1000})
    opened.set_input_files("#file", str(photograph))
    opened.wait_for_selector(".piece")
    return opened


@pytest.fixture
def fresh(page: Any, photograph: Path, tmp_path: Path) -> Any:
    """The same page with the photograph as a new picture: nothing is chosen. Its file is `given`."""
    page.given = Path(shutil.copy(photograph, tmp_path / f"{tmp_path.name}.jpg"))
    page.set_input_files("#file", str(page.given))
    wait_for_answer(page, page.given.name)
    page.mouse.move(0, 0)
    return page


@pytest.fixture(scope="module")
def answer(server: Server, photograph: Path) -> Any:
    return asked(server, photograph.read_bytes())


def asked(server: Server, picture: bytes, **options: Any) -> Any:
    return httpx.post(f"{server.address}/v1/predict", content=picture, params={"top_k": 5, **options}).json()


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
        page.wait_for_timeout(30)


def wait_for_answer(page: Any, name: str) -> None:
    label = json.dumps(f"your picture {name}")
    wait_for(
        page,
        f"document.getElementById('canvas').getAttribute('aria-label') === {label} "
        "&& !document.getElementById('explain').classList.contains('busy')",
    )


def shoot(page: Any, name: str, **options: Any) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", **options)


def evidence(level: dict[str, Any]) -> list[dict[str, Any]]:
    """The pieces of evidence that have a place on the page: those that do not round to 0."""
    return [piece for kind in ("evidence", "against") for piece in level[kind] if abs(piece["contribution"]) >= 0.005]


def figure(text: str) -> float:
    return float(text.replace("−", "-"))


# ---- numbers and places ----------------------------------------------------------------------------------------------


def test_every_level_shows_its_evidence_and_a_sum_that_ends_at_the_score(fresh: Any, answer: Any) -> None:
    tabs = fresh.locator("#levels [role=tab]")
    assert tabs.count() == len(answer["levels"])
    for number, level in enumerate(answer["levels"]):
        tabs.nth(number).click()
        assert tabs.nth(number).inner_text().startswith(level["label"].replace("-", " "))
        if level["logit"] is None:
            assert fresh.locator(".step").count() == 0
            continue
        shown = fresh.locator(".piece")
        assert shown.count() == len(evidence(level))
        for text, piece in zip(shown.all_inner_texts(), evidence(level), strict=True):
            sign = "−" if piece["contribution"] < 0 else "+"
            assert f"{sign}{abs(piece['contribution']):.2f}" in text
            absent = piece["similarity"] < piece["usual"]
            assert ("less than usual like" if absent else "looks like") in text.replace("\n", " ")
            assert f"prototype {piece['prototype']}" in text
        *parts, score = [figure(text) for text in fresh.locator(".step .value").all_inner_texts()]
        assert sum(parts) == pytest.approx(score, abs=1e-9)
        assert score == pytest.approx(level["logit"], abs=0.005 + 1e-9)
    assert any(level["against"] for level in answer["levels"])


def test_the_headline_says_how_far_the_answer_goes(fresh: Any, answer: Any) -> None:
    known = answer["known_through_level"]
    likely = sum(level["probability"] >= 0.5 for level in answer["levels"])
    held = min(known, likely)
    expected = answer["levels"][held - 1]["label"] if held else ("Nothing I know" if known <= likely else "Not sure")
    assert fresh.inner_text("#title") == expected.replace("-", " ")
    assert fresh.locator("#levels .open").count() == len(answer["levels"]) - held
    assert fresh.inner_text("#live").startswith(expected.replace("-", " "))


def test_a_piece_left_out_changes_the_sum_at_once(fresh: Any) -> None:
    before = figure(fresh.inner_text(".score .value"))
    piece = fresh.locator(".piece").first
    value = figure(piece.locator(".value").inner_text())
    piece.locator(".count").click()
    assert piece.locator(".count").get_attribute("aria-checked") == "false"
    assert figure(fresh.inner_text(".score .value")) == pytest.approx(before - value, abs=1e-9)
    piece.locator(".count").click()
    assert figure(fresh.inner_text(".score .value")) == before


def photographs() -> dict[str, bytes]:
    """Pictures whose boxes are easily misplaced."""

    def encoded(width: int, height: int, **options: Any) -> bytes:
        noise = np.random.default_rng(width).integers(0, 255, (7, 9, 3), dtype=np.uint8)
        file = io.BytesIO()
        picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(file, "JPEG", quality=90, **options)
        return file.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "turned": encoded(300, 200, exif=turned),
        "wide": encoded(600, 40),
        "high": encoded(50, 420),
        "huge": encoded(5200, 3900),
        "tiny": encoded(9, 7),
    }


@pytest.mark.parametrize("name", ["turned", "wide", "high", "huge", "tiny"])
def test_frames_lie_around_the_boxes(fresh: Any, server: Server, name: str) -> None:
    picture = photographs()[name]
    told = asked(server, picture)
    fresh.set_input_files("#file", {"name": f"{name}.jpg", "mimeType": "image/jpeg", "buffer": picture})
    wait_for_answer(fresh, f"{name}.jpg")
    fresh.mouse.move(0, 0)
    number = fresh.evaluate(
        "[...document.querySelectorAll('[role=tab]')].findIndex((tab) => tab.ariaSelected === 'true')"
    )
    level = told["levels"][number]
    frame = fresh.locator("#frame").bounding_box()
    longer = "width" if told["image"]["width"] >= told["image"]["height"] else "height"
    scale = frame[longer] / told["image"][longer]
    shape = fresh.eval_on_selector("#canvas", "canvas => [canvas.width, canvas.height]")
    assert shape[0] / shape[1] == pytest.approx(told["image"]["width"] / told["image"]["height"], rel=0.02)
    supporting = [piece for piece in level["evidence"] if piece["contribution"] >= 0.005]
    strokes = {
        mark.get_attribute("data-piece"): mark.locator(".halo")
        for mark in fresh.locator("#overlay .mark:has(.halo)").all()
    }
    assert set(strokes) == {str(index + 1) for index in range(len(supporting))}
    for index, piece in enumerate(supporting):
        found = {side: float(strokes[str(index + 1)].get_attribute(side)) for side in ("x", "y", "width", "height")}
        stroke = float(strokes[str(index + 1)].get_attribute("stroke-width"))
        left, top, right, bottom = [edge * scale for edge in piece["box"]]
        # The inner edge of the stroke: no pixel of the box is hidden.
        inner = (found["x"] + stroke / 2, found["y"] + stroke / 2, found["width"] - stroke, found["height"] - stroke)
        assert inner == pytest.approx((left, top, right - left, bottom - top), abs=0.75)
    shoot(fresh, f"picture-{name}")


def test_a_heat_map_is_drawn_for_the_piece_that_is_pointed_at(fresh: Any) -> None:
    fresh.check("#heat-on")
    wait_for(fresh, "!document.getElementById('heat').hidden")
    fresh.locator(".pair").first.focus()
    first = fresh.eval_on_selector("#heat", "canvas => canvas.toDataURL()")
    fresh.locator(".pair").nth(1).focus()
    assert fresh.eval_on_selector("#heat", "canvas => canvas.toDataURL()") != first
    shoot(fresh, "heat")
    fresh.uncheck("#heat-on")
    wait_for(fresh, "document.getElementById('heat').hidden")


# ---- pictures come in ------------------------------------------------------------------------------------------------


def test_a_picture_that_browsers_do_not_draw_is_shown_as_the_network_got_it(fresh: Any) -> None:
    file = io.BytesIO()
    Image.new("RGB", (120, 80), (200, 30, 40)).save(file, "TIFF")
    fresh.set_input_files("#file", {"name": "scan.tif", "mimeType": "image/tiff", "buffer": file.getvalue()})
    wait_for_answer(fresh, "scan.tif")
    assert "can't draw this format" in fresh.inner_text("#note")
    middle = fresh.eval_on_selector(
        "#canvas", "canvas => [...canvas.getContext('2d').getImageData(60, 40, 1, 1).data].slice(0, 3)"
    )
    assert np.allclose(middle, (200, 30, 40), atol=2)
    assert fresh.locator(".piece").count()


def test_an_error_says_what_to_do_and_keeps_the_answer(fresh: Any) -> None:
    title, pieces = fresh.inner_text("#title"), fresh.locator(".piece").count()

    def refused(name: str, kind: str, content: bytes) -> str:
        fresh.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})
        wait_for(fresh, "!document.getElementById('message').hidden")
        assert fresh.inner_text("#title") == title and fresh.locator(".piece").count() == pieces
        text: str = fresh.inner_text("#message")
        return text

    assert "letter.pdf is not a picture" in refused("letter.pdf", "application/pdf", b"%PDF-1.7")
    assert "empty.jpg is empty" in refused("empty.jpg", "image/jpeg", b"")
    assert "rubbish" not in refused("rubbish.jpg", "image/jpeg", b"no picture at all")
    dropped = "new DragEvent('drop', {dataTransfer: Object.assign(new DataTransfer())})"
    fresh.evaluate(
        f"(() => {{ const event = {dropped}; event.dataTransfer.setData('text/uri-list', 'a'); "
        "document.dispatchEvent(event); })()"
    )
    assert "That is an address" in fresh.inner_text("#message")
    fresh.complaints[:] = [line for line in fresh.complaints if "status of 4" not in line]


def test_a_service_that_does_not_answer_can_be_asked_again(fresh: Any, photograph: Path) -> None:
    fresh.route("**/v1/predict?*", lambda route: route.abort())
    fresh.set_input_files("#file", {"name": "again.jpg", "mimeType": "image/jpeg", "buffer": photograph.read_bytes()})
    wait_for(fresh, "!document.getElementById('message').hidden")
    assert "did not answer" in fresh.inner_text("#message")
    fresh.unroute("**/v1/predict?*")
    fresh.click("#message button")
    wait_for_answer(fresh, "again.jpg")
    assert fresh.is_hidden("#message")
    fresh.complaints[:] = [line for line in fresh.complaints if "ERR_FAILED" not in line]


def test_several_pictures_are_answered_one_by_one(fresh: Any, photograph: Path) -> None:
    pictures = [
        {"name": f"{name}.jpg", "mimeType": "image/jpeg", "buffer": photographs()[name]} for name in ("turned", "wide")
    ]
    fresh.set_input_files("#file", [*pictures, {"name": "not.txt", "mimeType": "text/plain", "buffer": b"text"}])
    wait_for(fresh, "document.querySelectorAll('#strip button').length === 3")
    wait_for(fresh, "![...document.querySelectorAll('#strip span')].some((title) => title.textContent === '…')")
    assert fresh.locator("#strip button").nth(2).inner_text() == "no answer"
    shoot(fresh, "strip")
    fresh.locator("#strip button").nth(1).click()
    wait_for_answer(fresh, "wide.jpg")


# ---- the answer goes out ---------------------------------------------------------------------------------------------


def copied(page: Any, form: str) -> str:
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("#share summary")
    page.click(f"[data-share={form}]")
    wait_for(page, "window.copied")
    text: str = page.evaluate("(() => { const text = window.copied; window.copied = ''; return text; })()")
    return text


def test_the_answer_is_copied_as_json_a_command_python_and_a_link(
    fresh: Any, browser: Any, server: Server, answer: Any
) -> None:
    fresh.click("#options summary")
    fresh.fill("#top_k", "2")
    fresh.dispatch_event("#top_k", "change")
    wait_for(fresh, "location.hash === '#top_k=2'")
    wait_for_answer(fresh, fresh.given.name)
    shorter = asked(server, fresh.given.read_bytes(), top_k=2)
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


# ---- keyboard, sight, sizes ------------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(browser: Any, server: Server, photograph: Path) -> None:
    page = open_page(browser, server.address)
    page.keyboard.press("Tab")
    for _ in range(8):
        if page.evaluate("document.activeElement.id") == "file":
            break
        page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(photograph))
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
def test_axe_finds_nothing(browser: Any, server: Server, photograph: Path, view: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(browser, server.address, **VIEWS[view])
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
        page.goto(f"{server.address}/#prototypes")
        page.wait_for_selector(".cards li")
        check("prototypes")
    assert not page.complaints
    page.close()


# ---- prototypes, proxies, keys ---------------------------------------------------------------------------------------


def test_the_prototypes_are_found_by_their_node(browser: Any, server: Server) -> None:
    page = open_page(browser, f"{server.address}/#prototypes")
    page.wait_for_selector(".cards li")
    listed = httpx.get(f"{server.address}/v1/prototypes", params={"node": "Animal/Ape/Gibbon"}).json()["prototypes"]
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


def shown_pictures(page: Any) -> list[int]:
    """The widths of the prototypes' pictures, once the browser has tried to load all of them; 0 where it could not."""
    page.evaluate("document.querySelectorAll('.pair img').forEach((image) => { image.loading = 'eager'; })")
    wait_for(page, "[...document.querySelectorAll('.pair img')].every((image) => image.src && image.complete)")
    widths: list[int] = page.eval_on_selector_all(".pair img", "all => all.map((image) => image.naturalWidth)")
    return widths


@pytest.mark.parametrize("slash", ["", "/"])
def test_behind_a_proxy_with_a_prefix_the_page_works(
    browser: Any, server: Server, photograph: Path, slash: str
) -> None:
    with proxied(server, "/models/tiny") as address:
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

"""The target `web` in a real browser: its folder behind a file server, compared with the service."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.targets import web
from protoserve import load
from protoserve.errors import InputError
from tests.bundles import BundleFactory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def web_bundle(bundle: BundleFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    if shutil.which("npm") is None:
        pytest.skip("needs npm, which onnxruntime-web comes from")
    try:
        web.fetch_runtime(tmp_path_factory.mktemp("runtime"))
    except InputError as error:
        pytest.skip(f"npm can't be asked here: {error}")
    return bundle("web", ("onnx", "web"))


@pytest.fixture(scope="module")
def address(web_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder alone, moved away from its bundle, behind Python's own file server."""
    alone = shutil.copytree(web_bundle / "web", tmp_path_factory.mktemp("browser") / "alone")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(alone)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"],
        )
        opened = browser.new_page()
        opened.set_default_timeout(120_000)
        opened.asked = []
        opened.complaints = []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.on("console", lambda line: opened.complaints.append(line.text) if line.type == "error" else None)
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.goto(address)
        opened.wait_for_selector("#file:enabled")
        yield opened
        browser.close()


def ask(page: Any, picture: Path) -> dict[str, Any]:
    page.evaluate("document.getElementById('document').textContent = ''")
    page.set_input_files("#file", str(picture))
    # Wait for selectors, because the page's policy forbids evaluating strings.
    page.wait_for_selector("#document:not(:empty), #state.error", state="attached")
    text = page.text_content("#document")
    assert text, page.text_content("#state")
    document: dict[str, Any] = json.loads(text)
    return document


@pytest.fixture(scope="module")
def pictures(photograph: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("browser")
    upright = Image.open(photograph)
    files = {
        "jpeg": photograph,
        "png": folder / "wide.png",
        "turned": folder / "turned.jpg",
        "clear": folder / "clear.png",
    }
    upright.crop((0, 0, 190, 41)).save(files["png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(files["turned"], exif=exif, quality=95)
    colours = np.dstack([np.asarray(upright), np.full((150, 200), 255, dtype=np.uint8)])
    colours[:40, :60, 3] = 0
    Image.fromarray(colours).save(files["clear"])
    return files


@pytest.mark.parametrize("kind", ["jpeg", "png", "turned", "clear"])
def test_the_page_predicts_like_the_service(kind: str, page: Any, web_bundle: Path, pictures: dict[str, Path]) -> None:
    expected = load(web_bundle, device="cpu").predict(pictures[kind])
    found = ask(page, pictures[kind])
    assert found["path"] == expected.path
    assert found["image"] == expected.image.model_dump(include={"width", "height"})
    for level, wanted in zip(found["levels"], expected.levels, strict=True):
        assert (level["node"], level["label"], level["forced"]) == (wanted.node, wanted.label, wanted.forced)
        # The graph's own resize and the browser's decoder differ by a grey level in places.
        assert level["probability"] == pytest.approx(wanted.probability, abs=5e-3)
        assert level["conditional"] == pytest.approx(wanted.conditional, abs=5e-3)
        assert (level["logit"] is None) == (wanted.logit is None)
        assert len(level["evidence"]) == len(wanted.evidence)
        assert level["evidence_share"] == pytest.approx(wanted.evidence_share, abs=0.02)
        if wanted.logit is not None:
            assert level["logit"] == pytest.approx(wanted.logit, abs=0.05)
            assert level["prior"] == pytest.approx(wanted.prior, abs=1e-6)
            assert level["rest"] == pytest.approx(wanted.rest, abs=0.1)
        by_prototype = {one.prototype: one for one in (*wanted.evidence, *wanted.against)}
        for one in (*level["evidence"], *level["against"]):
            told = one["weight"] * (one["similarity"] - one["usual"])
            assert one["contribution"] == pytest.approx(told, abs=1e-4)
            if (same := by_prototype.get(one["prototype"])) is not None:
                assert one["contribution"] == pytest.approx(same.contribution, abs=0.02)
                assert same.source is not None and tuple(one["source"]["box"]) == same.source.box
    first = [level["evidence"][0] for level in found["levels"] if level["evidence"]]
    wanted_first = [level.evidence[0] for level in expected.levels if level.evidence]
    assert [one["prototype"] for one in first] == [one.prototype for one in wanted_first]
    assert [tuple(one["box"]) for one in first] == [one.box for one in wanted_first]


def test_the_page_shows_every_level_with_its_evidence(page: Any, pictures: dict[str, Path]) -> None:
    found = ask(page, pictures["jpeg"])
    assert page.locator("#levels section").count() == len(found["levels"])
    shown = sum(len(level["evidence"]) + len(level["against"]) for level in found["levels"])
    assert page.locator("#levels li.against").count() == sum(len(level["against"]) for level in found["levels"]) > 0
    sums = page.locator("#levels section p").all_text_contents()
    assert len(sums) == sum(level["logit"] is not None for level in found["levels"])
    for line in sums:
        score, *parts = [
            float(figure.replace("−", "-")) for figure in re.findall(r"[+−]?\d+\.\d\d", line.partition(";")[0])
        ]
        assert len(parts) == 4 and sum(parts) == pytest.approx(score, abs=1e-9)
    assert page.locator("#levels li").count() == shown > 0
    widths = page.evaluate("Promise.all([...document.images].map((one) => one.decode().then(() => one.naturalWidth)))")
    assert len(widths) == shown and min(widths) > 0


def test_the_page_says_why_not_another_class(page: Any, web_bundle: Path, pictures: dict[str, Path]) -> None:
    # A browser does not tell of a file that is chosen again.
    ask(page, pictures["turned"])
    model = load(web_bundle, device="cpu")
    answer = model.predict(pictures["turned"])
    other = next(name for name in model.taxonomy.names if name.count("/") == 0 and name != answer.path[0])
    wanted = model.predict(pictures["turned"], contrast=other).contrast
    page.fill("#other", other)
    page.press("#other", "Enter")
    page.wait_for_selector("#contrast h2")
    found = json.loads(page.text_content("#document"))["contrast"]
    assert wanted is not None and (found["predicted"], found["instead"]) == (wanted.predicted, wanted.instead)
    assert found["logit_difference"] == pytest.approx(wanted.logit_difference, abs=0.05)
    shown = [*found["evidence"], *found["missing"]]
    told = found["prior_difference"] + sum(piece["difference"] for piece in shown) + found["rest"]
    assert told == pytest.approx(found["logit_difference"], abs=1e-6)
    assert page.locator("#contrast li").count() == len(shown) > 0
    page.fill("#other", "Nothing")
    page.press("#other", "Enter")
    page.wait_for_selector("#contrast p:has-text('There is no class Nothing')")


def test_the_frame_is_at_the_first_evidence(page: Any, pictures: dict[str, Path]) -> None:
    found = ask(page, pictures["png"])
    canvas, frame = (page.locator(f"#picture {name}").bounding_box() for name in ("canvas", "i.box"))
    scale = canvas["width"] / found["image"]["width"]
    left, top, _, _ = next(level["evidence"][0]["box"] for level in found["levels"] if level["evidence"])
    seen = page.locator("#picture i.seen").bounding_box()
    expected = next(level["evidence"][0]["seen"] for level in found["levels"] if level["evidence"])
    assert seen["x"] == pytest.approx(canvas["x"] + scale * expected[0], abs=1.5)
    assert seen["width"] == pytest.approx(scale * (expected[2] - expected[0]), abs=1.5)
    assert frame["x"] == pytest.approx(canvas["x"] + scale * left, abs=1.5)
    assert frame["y"] == pytest.approx(canvas["y"] + scale * top, abs=1.5)


def test_a_file_that_is_not_a_picture_is_an_error(page: Any, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "note.txt"))
    page.wait_for_selector("#state.error")
    page.set_input_files("#file", [])


def test_nothing_leaves_the_folder(page: Any, address: str) -> None:
    """All requests went to the folder, and none broke the page's own policy."""
    assert page.asked and all(url.startswith((address, "blob:")) for url in page.asked)
    assert not page.complaints
    assert page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"

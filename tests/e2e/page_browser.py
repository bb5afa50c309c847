"""Opens the service's page in Chromium and waits for it, for the tests of the page."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.e2e.serving import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Screenshots of the flows are kept here, to be looked at.
SHOTS = os.environ.get("PROTOSERVE_TEST_SHOTS")


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


def shown_pictures(page: Any) -> list[int]:
    """The widths of the prototypes' pictures, once the browser has tried to load all of them; 0 where it could not."""
    page.evaluate("document.querySelectorAll('.pair img').forEach((image) => { image.loading = 'eager'; })")
    wait_for(page, "[...document.querySelectorAll('.pair img')].every((image) => image.src && image.complete)")
    widths: list[int] = page.eval_on_selector_all(".pair img", "all => all.map((image) => image.naturalWidth)")
    return widths

"""How fast the page is: its size, its first paint, and from the response to the answer on the screen. One command:

    python -m benchmarks.service.page [BUNDLE]

Serves a bundle with sample pictures (default: the packaged demo), opens the page in headless Chromium anew for every
round, and presses its first sample picture. Times are the browser's own. Results in benchmarks/results/page.{json,md}.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import described, machine, write_results
from service.page.assembly import page
from tests.e2e.page_browser import opened_browser
from tests.e2e.serving import serving

# Notes when the first piece of evidence is in the page and the frame that shows it has been drawn.
WATCH = """
new MutationObserver((_, observer) => {
  if (document.querySelector(".piece")) {
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => { window.answerShown = performance.now(); }));
  }
}).observe(document, { childList: true, subtree: true });
"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
RESPONSE = "performance.getEntriesByType('resource').filter(e => e.name.includes('v1/predict')).at(-1).responseEnd"


def measure(address: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds to the first paint, and from the end of the response to the first piece of evidence, per round."""
    found: dict[str, list[float]] = {"first_paint": [], "answer_after_response": []}
    with opened_browser() as browser:
        for _ in range(rounds):
            opened = browser.new_page(viewport={"width": 1280, "height": 860})
            opened.add_init_script(WATCH)
            opened.goto(address)
            opened.locator("#samples button").first.click()
            opened.wait_for_selector(".piece")
            while not (shown := opened.evaluate("window.answerShown ?? 0")):
                time.sleep(0.01)
            found["first_paint"].append(opened.evaluate(PAINT))
            found["answer_after_response"].append(shown - opened.evaluate(RESPONSE))
            opened.close()
    return found


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# How fast the page is",
        "",
        "Made by `python -m benchmarks.service.page`; all figures in `page.json`.",
        "",
        f"The service over `{results['bundle']}` on loopback, headless Chromium, {results['rounds']} fresh pages.",
        "",
        "| | median | 95th percentile |",
        "|---|---|---|",
    ]
    for name, told in (("first_paint", "first paint"), ("answer_after_response", "response to answer on the screen")):
        times = results["milliseconds"][name]
        lines.append(f"| {told}, ms | {np.median(times):.0f} | {np.percentile(times, 95):.0f} |")
    size = f"The page has {results['bytes'] / 1000:.1f} kB, compressed as sent {results['bytes_sent'] / 1000:.1f} kB."
    return "\n".join([*lines, "", size, "", described(results["machine"])]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, serving(Path(options.bundle), Path(home)) as server:
        times = measure(server.address, options.rounds)
    found = {
        "machine": machine(),
        "bundle": options.bundle,
        "rounds": options.rounds,
        "bytes": len(page().html),
        "bytes_sent": len(page().compressed),
        "milliseconds": times,
    }
    write_results("page", found, table(found))
    print(table(found))


if __name__ == "__main__":
    main()

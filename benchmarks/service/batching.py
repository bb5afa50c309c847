#!/usr/bin/env python3
"""Compare three ways to batch pictures of several requests: ours, BentoML's, and BentoML's in a service of its own.

Measures for each the latency with one client, the throughput at saturation, and the effect of a picture that fails on
the others in its batch. Requests carry raw pixels of the model's size, so that only batching is measured. The sides
take turns.

Example: python -m benchmarks.service.batching bundles/grocery
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import RESULTS, ROOT, described, machine
from benchmarks.service.load import OPENER, Side, side, wrk, wrk_script
from protoserve.bundle.folder import read_bundle

SIDES = {
    "ours": "in-process batcher of ours",
    "bentoml": "BentoML's batcher through self.to_async (JSON)",
    "separate": "BentoML's, separate service",
}


def main() -> None:
    """Measure and write benchmarks/results/batching.{md,json}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--most", type=int, nargs="+", default=[1, 8], help="batch limits to measure; BentoML: the largest"
    )
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "batching")
    options = parser.parse_args()
    rule = read_bundle(options.bundle).manifest.input
    drawn = np.random.default_rng(0).integers(0, 250, (16, rule.height, rule.width, 3), dtype=np.uint8)
    pictures = [picture.tobytes() for picture in drawn]
    rows: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-batching-")))
        script = wrk_script(folder, pictures, False)
        sides = []
        for kind, most in [("ours", most) for most in options.most] + [
            ("bentoml", max(options.most)),
            ("separate", max(options.most)),
        ]:
            environment = {
                "BATCHING_SIDE": kind,
                "BATCHING_MOST": str(most),
                "BATCHING_LANES": str(options.lanes),
                "BATCHING_BUNDLE": str(options.bundle.resolve()),
                "BATCHING_HEIGHT": str(rule.height),
                "BATCHING_WIDTH": str(rule.width),
                "BENTOML_HOME": str(folder / f"{kind}-{most}"),
                "BENTOML_DO_NOT_TRACK": "true",
                "OMP_WAIT_POLICY": "passive",
            }
            command = [
                sys.executable,
                "-m",
                "bentoml",
                "serve",
                "benchmarks.service.batching_sides:Sides",
                "--working-dir",
                str(ROOT),
            ]
            name = f"{SIDES[kind]}, at most {most}"
            started = side(name, [*command, "--host", "127.0.0.1", "--port"], "/predict", False, environment, "/readyz")
            sides.append(stack.enter_context(started))
        for number in range(options.rounds + 1):
            print(f"round {number} of {options.rounds}", file=sys.stderr)
            for one in sides:
                seconds = options.seconds if number else 3.0
                alone = wrk(one, script, 1, seconds, strict=False)
                busy = wrk(one, script, options.connections, seconds, strict=False)
                if number:
                    row = rows.setdefault(one.name, {"p50_ms": [], "throughput": [], "p99_ms": [], "failed": []})
                    row["p50_ms"].append(alone["p50_ms"])
                    row["throughput"].append(busy["throughput"])
                    row["p99_ms"].append(busy["p99_ms"])
                    row["failed"].append(busy["failed"])
        spoiled = {one.name: good_ones_lost(one, drawn) for one in sides}
    found = {
        "machine": machine(),
        "options": {key: value for key, value in vars(options).items() if not isinstance(value, Path)},
        "medians": {
            name: {key: statistics.median(values) for key, values in row.items()} for name, row in rows.items()
        },
        "rounds": rows,
        "good_pictures_lost": spoiled,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(report(found))
    print(report(found))


def good_ones_lost(one: Side, drawn: Any, rounds: int = 20) -> list[int]:
    """The number of good pictures that got no answer next to one that fails, and the number of good pictures."""
    bad = drawn[0].copy()
    bad[0, 0, 0] = 255
    expected = [ask(one, picture.tobytes()) for picture in drawn[1:]]
    lost = 0
    for _ in range(rounds):
        answers: dict[int, str] = {}

        def put(number: int, body: bytes, answers: dict[int, str] = answers) -> None:
            answers[number] = ask(one, body)

        bodies = [picture.tobytes() for picture in drawn[1:]]
        bodies.insert(7, bad.tobytes())
        threads = [threading.Thread(target=put, args=(number, body)) for number, body in enumerate(bodies)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers.pop(7) == "failed"
        lost += sum(answer != right for (_, answer), right in zip(sorted(answers.items()), expected, strict=True))
    return [lost, rounds * len(expected)]


def ask(one: Side, body: bytes) -> str:
    """Predict one picture; return the answer, or `failed`."""
    try:
        with OPENER.open(urllib.request.Request(one.url(), data=body, method="POST"), timeout=60) as response:
            return str(response.read())
    except urllib.error.HTTPError:
        return "failed"


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Ways to batch pictures",
        "",
        f"`python -m benchmarks.service.batching BUNDLE --rounds {found['options']['rounds']} "
        f"--seconds {found['options']['seconds']:g}`: raw pixels of the model's size, "
        f"{found['options']['lanes']} lanes of one thread, {found['options']['connections']} connections when busy; "
        f"medians of {found['options']['rounds']} rounds in which the sides take turns.",
        "",
        "| | p50 with one client, ms | requests/s at saturation | p99 when busy, ms | errors when busy "
        "| good ones lost by a bad one |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["medians"].items():
        lost, of = found["good_pictures_lost"][name]
        lines.append(
            f"| {name} | {row['p50_ms']:.2f} | {row['throughput']:.1f} | {row['p99_ms']:.1f} "
            f"| {100 * row['failed']:.0f} % | {lost} of {of} |"
        )
    return "\n".join([*lines, "", described(found["machine"]), ""])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compare the service with its own engine and its twins (bare FastAPI, LitServe, a native BentoML API): throughput,
latency, start, memory.

All decode the same photographs with the same function, run the same graph with the same number of threads, and return
the same document; only the server differs. `wrk` generates the load (apt-get install wrk). The sides take turns in each
round; the results are medians over rounds and their ratios.

Example: python -m benchmarks.service.throughput bundles/grocery grocery-store/test
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import RESULTS, ROOT, described, machine
from benchmarks.service.load import Side, open_loop, paced, side, wrk, wrk_script
from protoserve.inference.classifier import Classifier, load

TWINS = Path(__file__).parent
# The number and the seconds of measurements at 70 % load. A single pause of the machine would dominate one 99th
# percentile.
WINDOWS, STEADY = 5, 20.0


def main() -> None:
    """Measure and write benchmarks/results/service.{md,json}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="a folder of photographs")
    parser.add_argument("--photographs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of one measurement of one side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--lanes", type=int, default=os.cpu_count() or 1, help="concurrent inferences, of one thread each"
    )
    parser.add_argument(
        "--workers", type=int, help="processes of the service, which share the lanes; by default one per lane"
    )
    parser.add_argument("--connections", type=int, default=16, help="at saturation")
    parser.add_argument(
        "--soak", type=float, default=0.0, help="minutes at 70 %% load, for memory and latency over time"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "service")
    options = parser.parse_args()
    options.workers = options.workers or options.lanes
    if options.lanes % options.workers:
        parser.error(f"{options.lanes} lanes can't be shared by {options.workers} workers; give a divisor")
    if shutil.which("wrk") is None:
        parser.error("wrk, which generates the load, is not installed; apt-get install wrk")
    photographs = [file.read_bytes() for file in sorted(options.data.rglob("*.jpg"))[: options.photographs]]
    if not photographs:
        parser.error(f"{options.data} holds no .jpg files; give a folder of photographs")
    found = measure(options, photographs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(report(found))
    print(report(found))


def measure(options: argparse.Namespace, photographs: list[bytes]) -> dict[str, Any]:
    """Measure all rounds; return the medians and the values of every round."""
    classifier = load(options.bundle, device="cpu", threads=1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-service-")))
        scripts = {form: wrk_script(folder, photographs, form) for form in (False, True)}
        sides = start_sides(stack, options, folder)
        rows: dict[str, dict[str, list[float]]] = {side.name: {} for side in sides}
        rows["engine alone"], rows["in process"] = {}, {}
        for number in range(options.rounds + 1):
            print(f"round {number} of {options.rounds}" + (" (warming up)" if number == 0 else ""), file=sys.stderr)
            seconds = options.seconds if number else min(3.0, options.seconds)
            one_round(options, seconds, classifier, photographs, sides, scripts, rows if number else None)
        ours = sides[0]
        rate = 0.7 * statistics.median(rows[ours.name]["throughput"])
        steady = [asyncio.run(open_loop(ours, photographs, rate, STEADY)) for _ in range(WINDOWS)]
        worker = max(psutil.Process(ours.process.pid).children(recursive=True), key=lambda one: one.memory_info().rss)
        soak = asyncio.run(soaking(ours, worker, photographs, rate, options.soak)) if options.soak else None
        sockets = {
            "start_seconds": ours.seconds_to_ready,
            "worker_resident_mb": worker.memory_info().rss / 1e6,
        }
    medians = {
        name: {key: statistics.median(values) for key, values in measured.items()} for name, measured in rows.items()
    }
    mine = medians[ours.name]
    return {
        "machine": machine(),
        "options": {key: value for key, value in vars(options).items() if not isinstance(value, Path)},
        "load_average": os.getloadavg()[0],
        "photographs": len(photographs),
        "medians": medians,
        "rounds": rows,
        "ratios": {
            "throughput to the engine alone": mine["throughput"] / medians["engine alone"]["throughput"],
            "throughput to decode, engine and document in process": mine["throughput"]
            / medians["in process"]["throughput"],
            **{
                f"throughput to {side.name}": mine["throughput"] / medians[side.name]["throughput"]
                for side in sides[1:]
            },
        },
        "added_p50_ms": mine["p50_ms"] - medians["in process"]["p50_ms"],
        "at_70_percent": {
            "rate": rate,
            "windows": steady,
            **{key: statistics.median(one[key] for one in steady) for key in ("p50_ms", "p99_ms")},
            "p99_to_p50": statistics.median(one["p99_ms"] / one["p50_ms"] for one in steady),
        },
        "soak": soak,
        **sockets,
    }


def one_round(
    options: argparse.Namespace,
    seconds: float,
    classifier: Classifier,
    photographs: list[bytes],
    sides: list[Side],
    scripts: dict[bool, Path],
    rows: dict[str, dict[str, list[float]]] | None,
) -> None:
    """Measure every side once, with one client and at saturation."""

    def keep(name: str, key: str, value: float) -> None:
        if rows is not None:
            rows[name].setdefault(key, []).append(value)

    images = [classifier.fit(photograph).array[None] for photograph in photographs]
    keep(
        "engine alone",
        "throughput",
        in_threads(lambda n: classifier.engine.run(images[n]), options.lanes, seconds, len(images)),
    )
    work: Callable[[int], Any] = lambda n: classifier.predict(photographs[n]).model_dump_json()  # noqa: E731
    keep("in process", "throughput", in_threads(work, options.lanes, seconds, len(photographs)))
    spent = []
    deadline, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < deadline:
        begun = time.perf_counter()
        work(number % len(photographs))
        spent.append((time.perf_counter() - begun) * 1000)
        number += 1
    keep("in process", "p50_ms", statistics.median(spent))
    for one in sides:
        alone = wrk(one, scripts[one.form], 1, seconds)
        keep(one.name, "p50_ms", alone["p50_ms"])
        busy = wrk(one, scripts[one.form], options.connections, seconds)
        keep(one.name, "throughput", busy["throughput"])
        keep(one.name, "busy_p99_ms", busy["p99_ms"])


def in_threads(work: Callable[[int], Any], threads: int, seconds: float, items: int) -> float:
    """The calls of `work` per second when `threads` threads call it without a pause."""
    counts = [0] * threads
    deadline = time.perf_counter() + seconds

    def go(thread: int) -> None:
        number = thread
        while time.perf_counter() < deadline:
            work(number % items)
            counts[thread] += 1
            number += threads

    begun = time.perf_counter()
    running = [threading.Thread(target=go, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


# ---- the sides ----------------------------------------------------------------------------------------------------


def start_sides(stack: ExitStack, options: argparse.Namespace, folder: Path) -> list[Side]:
    """Start the service, then the twins that are installed."""
    common = {
        "TWIN_BUNDLE": str(options.bundle.resolve()),
        "TWIN_LANES": str(options.lanes),
        "OMP_WAIT_POLICY": "passive",
    }
    ours = {
        "PROTOSERVE_BUNDLE": str(options.bundle.resolve()),
        "PROTOSERVE_DEVICE": "cpu",
        "PROTOSERVE_THREADS": "1",
        "PROTOSERVE_WORKERS": str(options.workers),
        "PROTOSERVE_LANES": str(options.lanes // options.workers),
        "PROTOSERVE_LOG_LEVEL": "warning",
        "PROTOSERVE_METRICS_DIRECTORY": str(folder / "metrics"),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    (folder / "metrics").mkdir()
    serve = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "service.service:ProtoServe",
        "--working-dir",
        str(ROOT),
        "--host",
        "127.0.0.1",
    ]
    sides = [stack.enter_context(side("ProtoServe", [*serve, "--port"], "/v1/predict", False, ours, "/readyz"))]
    if importlib.util.find_spec("fastapi"):
        command = [sys.executable, str(TWINS / "twin_fastapi.py")]
        sides.append(stack.enter_context(side("FastAPI + onnxruntime", command, "/predict", False, common, "/docs")))
    else:
        print("no FastAPI twin: pip install fastapi", file=sys.stderr)
    if importlib.util.find_spec("litserve"):
        command = [sys.executable, str(TWINS / "twin_litserve.py")]
        sides.append(stack.enter_context(side("LitServe", command, "/predict", True, common, "/health")))
    else:
        print("no LitServe twin: pip install litserve", file=sys.stderr)
    bento = {**common, "BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}
    native = [*serve[:4], "twin_bentoml:Twin", "--working-dir", str(TWINS), "--host", "127.0.0.1", "--port"]
    sides.append(stack.enter_context(side("a native BentoML API", native, "/predict", True, bento, "/readyz")))
    return sides


async def soaking(
    side: Side, worker: psutil.Process, photographs: list[bytes], rate: float, minutes: float
) -> list[dict[str, float]]:
    """Load the service for minutes; return requests so far, resident memory, open files and latency after each."""
    rows = []
    total = 0
    for minute in range(round(minutes)):
        spent = sorted(await paced(side, photographs, rate, 60.0))
        total += len(spent)
        rows.append(
            {
                "minute": minute + 1,
                "requests": total,
                "resident_mb": worker.memory_info().rss / 1e6,
                "open_files": worker.num_fds(),
                "p50_ms": spent[len(spent) // 2] * 1000,
                "p99_ms": spent[int(len(spent) * 0.99)] * 1000,
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    given = found["options"]
    lines = [
        "# The service beside its engine and beside twins",
        "",
        f"`python -m benchmarks.service.throughput BUNDLE DIR --workers {given['workers']} --rounds {given['rounds']} "
        f"--seconds {given['seconds']:g} --soak {given['soak']:g}`: {found['photographs']} "
        f"photographs in turn, {given['lanes']} inferences of one thread at a time on every side (ours in "
        f"{given['workers']} processes), {given['connections']} connections at saturation. Medians of "
        f"{given['rounds']} rounds in which the sides take turns.",
        "",
        "| | requests/s at saturation | p50 with one client, ms | p99 at saturation, ms |",
        "|---|---|---|---|",
    ]
    for name, row in found["medians"].items():
        cells = (f"{row[key]:.1f}" if key in row else "" for key in ("throughput", "p50_ms", "busy_p99_ms"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    steady = found["at_70_percent"]
    apart = [one["p99_ms"] / one["p50_ms"] for one in steady["windows"]]
    lines += ["", *(f"- {name}: {value:.3f}" for name, value in found["ratios"].items())]
    lines += [
        f"- added p50 with one client: {found['added_p50_ms']:.2f} ms over the same work in process",
        f"- at 70 % load ({steady['rate']:.0f} requests/s, open loop), medians of {WINDOWS} times {STEADY:g} s: p50 "
        f"{steady['p50_ms']:.1f} ms, p99 {steady['p99_ms']:.1f} ms, {steady['p99_to_p50']:.2f} times as long ("
        f"{', '.join(f'{shares:.2f}' for shares in sorted(apart))})",
        f"- from start to ready: {found['start_seconds']:.1f} s; a worker's resident memory after the load: "
        f"{found['worker_resident_mb']:.0f} MB",
    ]
    if found["soak"]:
        first, last = found["soak"][len(found["soak"]) // 5], found["soak"][-1]
        growth = (last["resident_mb"] - first["resident_mb"]) / max(1, last["requests"] - first["requests"]) * 10_000
        lines.append(
            f"- soak of {last['minute']} minutes: {growth:.2f} MB per 10,000 requests after the first fifth, files "
            f"{first['open_files']} → {last['open_files']}, p50 {first['p50_ms']:.1f} → {last['p50_ms']:.1f} ms"
        )
    lines += ["", described(found["machine"]) + f" Load average at the end: {found['load_average']:.1f}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""The service beside its own engine, a bare FastAPI twin and a LitServe twin: throughput, latency, start, memory.

All four decode the same photographs with the same function, run the same graph with the same number of threads and give
the same document; what differs is what carries the bytes. `wrk` makes the load (apt-get install wrk); the sides take
turns, round after round, and what is reported are medians over rounds and their ratios.

Example: python benchmarks/service.py bundles/grocery grocery-store/test
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from measuring import described, machine

from protoserve.classifier import Classifier, load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TWINS = Path(__file__).parent
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Side:
    """A server under test: its name, its port, the path that predicts, and whether it takes raw bodies or forms."""

    name: str
    port: int
    path: str
    form: bool
    process: subprocess.Popen[bytes]
    seconds_to_ready: float

    def url(self) -> str:
        """Where it predicts."""
        return f"http://127.0.0.1:{self.port}{self.path}"


def main() -> None:
    """Measure and write benchmarks/results/service.{md,json}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="a folder of photographs")
    parser.add_argument("--photographs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one measurement of one side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="inferences at a time, of one thread each")
    parser.add_argument("--connections", type=int, default=16, help="at saturation")
    parser.add_argument("--soak", type=float, default=0.0, help="minutes at 70 %% load, for memory and latency over time")
    parser.add_argument("--out", type=Path, default=RESULTS / "service")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk makes the load and is not here; install it (apt-get install wrk)")
    photographs = [file.read_bytes() for file in sorted(options.data.rglob("*.jpg"))[: options.photographs]]
    if not photographs:
        parser.error(f"{options.data} holds no .jpg files; give a folder of photographs")
    found = measure(options, photographs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(report(found))
    print(report(found))


def measure(options: argparse.Namespace, photographs: list[bytes]) -> dict[str, Any]:
    """All rounds; medians and what they are medians of."""
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
        steady = asyncio.run(open_loop(ours, photographs, rate, max(20.0, options.seconds)))
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
        "options": {key: str(value) for key, value in vars(options).items()},
        "load_average": os.getloadavg()[0],
        "photographs": len(photographs),
        "medians": medians,
        "rounds": rows,
        "ratios": {
            "throughput to the engine alone": mine["throughput"] / medians["engine alone"]["throughput"],
            "throughput to decode, engine and document in process": mine["throughput"]
            / medians["in process"]["throughput"],
            **{
                f"throughput to {side.name}": mine["throughput"] / medians[side.name]["throughput"] for side in sides[1:]
            },
        },
        "added_p50_ms": mine["p50_ms"] - medians["in process"]["p50_ms"],
        "at_70_percent": {"rate": rate, **steady, "p99_to_p50": steady["p99_ms"] / steady["p50_ms"]},
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
    """Every side once: alone with one client, and with as many as it takes to keep it busy."""

    def keep(name: str, key: str, value: float) -> None:
        if rows is not None:
            rows[name].setdefault(key, []).append(value)

    images = [classifier.fit(photograph).array[None] for photograph in photographs]
    keep("engine alone", "throughput", in_threads(lambda n: classifier.engine.run(images[n]), options.lanes, seconds, len(images)))
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
    for side in sides:
        alone = wrk(side, scripts[side.form], 1, seconds)
        keep(side.name, "p50_ms", alone["p50_ms"])
        busy = wrk(side, scripts[side.form], options.connections, seconds)
        keep(side.name, "throughput", busy["throughput"])
        keep(side.name, "busy_p99_ms", busy["p99_ms"])


def in_threads(work: Callable[[int], Any], threads: int, seconds: float, items: int) -> float:
    """How often per second `work` ends when `threads` threads call it without a pause."""
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


# ---- the sides ---------------------------------------------------------------------------------------------------------


def start_sides(stack: ExitStack, options: argparse.Namespace, folder: Path) -> list[Side]:
    """Ours first, then the twins that are installed."""
    common = {"TWIN_BUNDLE": str(options.bundle.resolve()), "TWIN_LANES": str(options.lanes), "OMP_WAIT_POLICY": "passive"}
    ours = {
        "PROTOSERVE_BUNDLE": str(options.bundle.resolve()),
        "PROTOSERVE_DEVICE": "cpu",
        "PROTOSERVE_THREADS": "1",
        "PROTOSERVE_LANES": str(options.lanes),
        "PROTOSERVE_LOG_LEVEL": "warning",
        "PROTOSERVE_METRICS_DIRECTORY": str(folder / "metrics"),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    (folder / "metrics").mkdir()
    serve = [sys.executable, "-m", "bentoml", "serve", "service.service:ProtoServe", "--working-dir", str(ROOT), "--host", "127.0.0.1"]
    sides = [stack.enter_context(side("ProtoServe", [*serve, "--port"], "/v1/predict", False, ours, "/readyz"))]
    if importlib.util.find_spec("fastapi"):
        command = [sys.executable, str(TWINS / "service_twin_fastapi.py")]
        sides.append(stack.enter_context(side("FastAPI + onnxruntime", command, "/predict", False, common, "/docs")))
    if importlib.util.find_spec("litserve"):
        command = [sys.executable, str(TWINS / "service_twin_litserve.py")]
        sides.append(stack.enter_context(side("LitServe", command, "/predict", True, common, "/health")))
    return sides


@contextmanager
def side(
    name: str, command: list[str], path: str, form: bool, environment: dict[str, str], ready: str
) -> Iterator[Side]:
    """Start a server and wait until it is ready; stop it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{name} ended while starting; run it by hand: {' '.join(command)} {port}")
            try:
                with OPENER.open(f"http://127.0.0.1:{port}{ready}", timeout=5) as response:
                    if response.status == 200:
                        break
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        yield Side(name, port, path, form, process, time.perf_counter() - begun)
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in family:
            if child.is_running():
                child.kill()


# ---- load ----------------------------------------------------------------------------------------------------------------


def wrk_script(folder: Path, photographs: list[bytes], form: bool) -> Path:
    """A script for wrk that sends one photograph after the other, raw or in a form."""
    bodies = folder / ("forms" if form else "raw")
    bodies.mkdir()
    for number, photograph in enumerate(photographs):
        (bodies / str(number)).write_bytes(body_of(photograph, form))
    script = folder / f"{bodies.name}.lua"
    script.write_text(
        f"""local requests = {{}}
local number = 0
function init(args)
  for i = 0, {len(photographs) - 1} do
    local file = io.open("{bodies}/" .. i, "rb")
    requests[i] = wrk.format("POST", nil, {{["Content-Type"] = "{media_type(form)}"}}, file:read("*a"))
    file:close()
  end
end
function request()
  number = (number + 1) % {len(photographs)}
  return requests[number]
end
"""
    )
    return script


def media_type(form: bool) -> str:
    """The Content-Type of a body."""
    return "multipart/form-data; boundary=photograph" if form else "image/jpeg"


def body_of(photograph: bytes, form: bool) -> bytes:
    """A photograph as a body."""
    if not form:
        return photograph
    head = b'--photograph\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return head + photograph + b"\r\n--photograph--\r\n"


def wrk(side: Side, script: Path, connections: int, seconds: float) -> dict[str, float]:
    """Keep `connections` busy for a while; every answer must be good."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "30s"]
    output = subprocess.run([*command, "-s", str(script), side.url()], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{side.name}: not every request was answered:\n{output}")
    quantiles = {share: milliseconds(value) for share, value in re.findall(r"^\s+(\d+)%\s+(\S+)\s*$", output, re.MULTILINE)}
    if "99" not in quantiles:
        raise SystemExit(f"{side.name}: too few answers in {seconds:g} s; give more --seconds:\n{output}")
    [throughput] = re.findall(r"Requests/sec:\s+(\S+)", output)
    return {"throughput": float(throughput), "p50_ms": quantiles["50"], "p99_ms": quantiles["99"]}


def milliseconds(text: str) -> float:
    """wrk's `1.23ms`, `456.00us`, `1.20s` as milliseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]


async def open_loop(side: Side, photographs: list[bytes], rate: float, seconds: float) -> dict[str, float]:
    """Requests at a fixed rate, whether or not earlier ones are answered, as independent clients would send them."""
    spent = await paced(side, photographs, rate, seconds)
    spent.sort()
    return {
        "p50_ms": spent[len(spent) // 2] * 1000,
        "p99_ms": spent[int(len(spent) * 0.99)] * 1000,
        "requests": float(len(spent)),
    }


async def paced(side: Side, photographs: list[bytes], rate: float, seconds: float) -> list[float]:
    """The seconds that each request took, from when it was due."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    spent: list[float] = []

    async def one(number: int, due: float) -> None:
        while idle and idle[-1][0].at_eof():
            # The server closes what has been idle for long.
            idle.pop()[1].close()
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", side.port)
        body = body_of(photographs[number % len(photographs)], side.form)
        head = f"POST {side.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {media_type(side.form)}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer[:20]:
            raise SystemExit(f"{side.name}: {answer[:200]!r}")
        [length] = re.findall(rb"(?i)content-length: (\d+)", answer)
        await reader.readexactly(int(length))
        spent.append(time.perf_counter() - due)
        idle.append((reader, writer))

    begun = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return spent


async def soaking(
    side: Side, worker: psutil.Process, photographs: list[bytes], rate: float, minutes: float
) -> list[dict[str, float]]:
    """Minute by minute: requests so far, resident memory, open files, latency."""
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
    lines = [
        "# The service beside its engine and beside twins",
        "",
        f"`python benchmarks/service.py {found['options']['bundle']} {found['options']['data']}`: {found['photographs']} "
        f"photographs in turn, {found['options']['lanes']} inferences of one thread at a time on every side, "
        f"{found['options']['connections']} connections at saturation. Medians of {found['options']['rounds']} rounds in "
        "which the sides take turns.",
        "",
        "| | requests/s at saturation | p50 with one client, ms | p99 at saturation, ms |",
        "|---|---|---|---|",
    ]
    for name, row in found["medians"].items():
        cells = (f"{row[key]:.1f}" if key in row else "" for key in ("throughput", "p50_ms", "busy_p99_ms"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    steady = found["at_70_percent"]
    lines += ["", *(f"- {name}: {value:.3f}" for name, value in found["ratios"].items())]
    lines += [
        f"- added p50 with one client: {found['added_p50_ms']:.2f} ms over the same work in process",
        f"- at 70 % load ({steady['rate']:.0f} requests/s, open loop): p50 {steady['p50_ms']:.1f} ms, p99 "
        f"{steady['p99_ms']:.1f} ms, {steady['p99_to_p50']:.2f} times as long",
        f"- from start to ready: {found['start_seconds']:.1f} s; a worker's resident memory after the load: "
        f"{found['worker_resident_mb']:.0f} MB",
    ]
    if found["soak"]:
        first, last = found["soak"][len(found["soak"]) // 5], found["soak"][-1]
        growth = (last["resident_mb"] - first["resident_mb"]) / max(1, last["requests"] - first["requests"]) * 10_000
        lines.append(
            f"- soak of {last['minute']} minutes: {growth:.2f} MB per 10,000 requests after the first fifth, open files "
            f"{first['open_files']} → {last['open_files']}, p50 {first['p50_ms']:.1f} → {last['p50_ms']:.1f} ms"
        )
    lines += ["", described(found["machine"]) + f" Load average at the end: {found['load_average']:.1f}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

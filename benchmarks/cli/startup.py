"""Time the start of commands on the demo: of a prediction, and of the service until it is ready. One command:

    python -m benchmarks.cli.startup

Runs each command several times in turn, beside a process that only imports the libraries that a prediction needs, and
counts the CPU time of all processes. Writes benchmarks/results/startup.{json,md}.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.measuring import described, machine, write_results
from protoserve.bundle.packaged import located

MAIN: Final = "from protoserve.cli.root import main; main()"
LIBRARIES: Final = "import numpy, onnxruntime, pydantic, typer, PIL.Image, rich.console"
# Seconds to wait for the service.
PATIENCE: Final = 120.0


def finished(*arguments: str) -> float:
    """CPU seconds of a Python process with these arguments."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def ready() -> dict[str, float]:
    """CPU and wall seconds of `protoserve serve demo` until it answers that it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", MAIN, "serve", "demo", "--port", str(port)]
    began = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - began < PATIENCE:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        else:
            raise TimeoutError(f"the service was not ready after {PATIENCE:g} s")
        wall, parent = time.perf_counter() - began, psutil.Process(server.pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        return {"wall_s": wall, "cpu_s": sum(one.user + one.system for one in times)}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def main() -> None:
    """Measure all commands and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="of each command (default: %(default)s)")
    repeats = parser.parse_args().repeats
    picture = str(next((located("demo") / "samples").iterdir()))
    commands = {
        "libraries alone": ("-c", LIBRARIES),
        "protoserve --help": ("-c", MAIN, "--help"),
        "protoserve predict demo PICTURE": ("-c", MAIN, "predict", "demo", picture),
    }
    rounds = [{name: finished(*arguments) for name, arguments in commands.items()} for _ in range(repeats)]
    rows: dict[str, Any] = {name: {"cpu_s": median(one[name] for one in rounds)} for name in commands}
    starts = [ready() for _ in range(max(1, repeats // 2))]
    rows["protoserve serve demo, until ready"] = {key: median(one[key] for one in starts) for key in starts[0]}
    found, load = machine(), os.getloadavg()[0]
    lines = [
        f"Medians of {repeats} runs in turn ({len(starts)} of the service); `python -m benchmarks.cli.startup`.",
        "",
        "| command | CPU time, s | wall time, s |",
        "|---|---|---|",
        *(
            f"| {name} | {row['cpu_s']:.2f} | {format(row['wall_s'], '.1f') if 'wall_s' in row else ''} |"
            for name, row in rows.items()
        ),
        "",
        f"Load average while measuring: {load:.1f}. Wall time counts only on a quiet machine.",
        "",
        described(found),
    ]
    write_results("startup", {"machine": found, "load": load, "commands": rows}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

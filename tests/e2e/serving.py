"""Starts the real service, for tests that need more than its routes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
SERVE = (
    sys.executable,
    "-c",
    "from protoserve.cli.root import main; main()",
    "serve",
)


@dataclass
class Server:
    """A running service and its log."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[psutil.Process]:
        """The worker processes that BentoML's supervisor started."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [found for found in family if any("worker" in word for word in command_of(found))]

    def lines(self) -> list[dict[str, object]]:
        """The lines of the access log."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["logger"] == "protoserve.access"]

    def metric(self, name: str, missing: float | None = None) -> float:
        """The sum of a metric's samples. A metric without samples is an error, except where `missing` gives its value:
        metrics with labels have none until something happens."""
        text = httpx.get(f"{self.address}/metrics").text
        found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, flags=re.MULTILINE)
        if not found and missing is not None:
            return missing
        assert found, f"no samples of {name} in:\n{text}"
        return sum(map(float, found))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def command_of(process: psutil.Process) -> list[str]:
    """A process's command; empty when it has ended."""
    try:
        found: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return found


def serving(bundle: Path, home: Path, *options: str, **settings: str) -> AbstractContextManager[Server]:
    """Run `protoserve serve` with settings as environment variables."""
    return running((*SERVE, str(bundle), "--device", "cpu", *options), home, **settings)


@contextmanager
def running(command: tuple[str, ...], home: Path, **settings: str) -> Iterator[Server]:
    """Run a command that serves on `--port`."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROTOSERVE_", "PROMETHEUS_"))}
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            env={
                **kept,
                "BENTOML_HOME": str(home),
                "PROTOSERVE_LOG_FORMAT": "json",
                "PROTOSERVE_THREADS": "1",
                **settings,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, log)
    try:
        wait_until(lambda: is_ready(server), 120, log)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()


@contextmanager
def proxied(server: Server, prefix: str) -> Iterator[str]:
    """A proxy that passes what is below `prefix` on to the server, without the prefix; yields its address."""

    class Pass(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            answer = httpx.request(self.command, server.address + self.path.removeprefix(prefix), content=body)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pass) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}{prefix}"
        proxy.shutdown()


def is_ready(server: Server) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    try:
        return httpx.get(f"{server.address}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.1)

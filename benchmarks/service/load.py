"""Start servers and put load on them, for benchmarks/service/throughput.py and benchmarks/service/batching.py."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.measuring import ROOT

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Side:
    """A server under test: its name, its port, the path of predictions, and whether it takes forms or raw bodies."""

    name: str
    port: int
    path: str
    form: bool
    process: subprocess.Popen[bytes]
    seconds_to_ready: float

    def url(self) -> str:
        """The URL for predictions."""
        return f"http://127.0.0.1:{self.port}{self.path}"


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


def wrk_script(folder: Path, photographs: list[bytes], form: bool) -> Path:
    """Write a wrk script that sends the photographs in turn, raw or in a form."""
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
    """The body of a request with a photograph."""
    if not form:
        return photograph
    head = b'--photograph\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return head + photograph + b"\r\n--photograph--\r\n"


def wrk(side: Side, script: Path, connections: int, seconds: float, *, strict: bool = True) -> dict[str, float]:
    """Keep `connections` busy for some seconds. If `strict`, every answer must be good; otherwise count `failed`
    ones."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "30s"]
    output = subprocess.run(
        [*command, "-s", str(script), side.url()], capture_output=True, text=True, check=True
    ).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if (strict and refused) or "Socket errors" in output:
        raise SystemExit(f"{side.name}: not every request was answered:\n{output}")
    quantiles = {
        share: milliseconds(value) for share, value in re.findall(r"^\s+(\d+)%\s+(\S+)\s*$", output, re.MULTILINE)
    }
    if "99" not in quantiles:
        raise SystemExit(f"{side.name}: too few answers in {seconds:g} s; give more --seconds:\n{output}")
    [throughput] = re.findall(r"Requests/sec:\s+(\S+)", output)
    [requests] = re.findall(r"(\d+) requests in", output)
    return {
        "throughput": float(throughput),
        "p50_ms": quantiles["50"],
        "p99_ms": quantiles["99"],
        "failed": int(refused[1]) / max(1, int(requests)) if refused else 0.0,
    }


def milliseconds(text: str) -> float:
    """Parse wrk's `1.23ms`, `456.00us` or `1.20s` as milliseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]


async def open_loop(side: Side, photographs: list[bytes], rate: float, seconds: float) -> dict[str, float]:
    """Send requests at a fixed rate, even if earlier ones are not answered yet, like independent clients."""
    spent = await paced(side, photographs, rate, seconds)
    spent.sort()
    return {
        "p50_ms": spent[len(spent) // 2] * 1000,
        "p99_ms": spent[int(len(spent) * 0.99)] * 1000,
        "requests": float(len(spent)),
    }


async def paced(side: Side, photographs: list[bytes], rate: float, seconds: float) -> list[float]:
    """The seconds from each request's scheduled time to its answer."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    spent: list[float] = []

    async def one(number: int, due: float) -> None:
        while idle and idle[-1][0].at_eof():
            # The server closes connections that have been idle for long.
            idle.pop()[1].close()
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", side.port)
        body = body_of(photographs[number % len(photographs)], side.form)
        lines = (f"POST {side.path} HTTP/1.1", "Host: x", f"Content-Type: {media_type(side.form)}")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", ""))
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

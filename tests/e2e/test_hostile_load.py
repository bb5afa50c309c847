"""Two hundred hostile pictures, two at a time, on one core and 1 GiB of memory, beside a client with a photograph.

`make test-faults` runs it; it takes minutes. With PROTOSERVE_KEEP_RESULTS it writes benchmarks/results/hostile.md.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.measuring import described, machine, write_results
from service.settings import Settings
from tests import bombs
from tests.e2e.serving import SERVE, Server, running, wait_until
from tests.service import corpus

UPLOADS = int(os.environ.get("PROTOSERVE_HOSTILE_LOAD", "200"))
MEMORY = 1 << 30
# How long a request may take: its wait, its decoding, and a second.
ANSWER_SECONDS = 12
LATE = 1.0
GOOD_SECONDS = 5.0
# Every so many bombs, a client leaves without waiting for its answer.
LEAVES = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes minutes: make test-faults"),
]


@dataclass
class Seen:
    """What the clients saw and what the service took."""

    answers: defaultdict[str, list[tuple[int, str, float]]] = field(default_factory=lambda: defaultdict(list))
    good: list[tuple[int, float]] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    left: int = 0
    memory: list[int] = field(default_factory=list)


def limits() -> tuple[Sequence[str], dict[str, str], str]:
    """Return a command that runs another on one core within 1 GiB, the settings that it needs, and its description.

    A control group needs systemd. Without it, the service is bound to one core and told its memory; the sum of its
    processes' memory is measured and must stay below the limit.
    """
    scope = ["systemd-run", "--scope", "--quiet", "--collect", "-p", f"MemoryMax={MEMORY}", "-p", "MemorySwapMax=0"]
    scope += ["-p", "CPUQuota=100%", "--"]
    if shutil.which("systemd-run") and not subprocess.run([*scope, "true"], capture_output=True).returncode:
        return scope, {}, "a control group of systemd's: 1 GiB of memory, no swap, one CPU"
    bind = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.execv(sys.argv[1], sys.argv[1:])"
    )
    budget = {"PROTOSERVE_MAX_DECODING": str(Settings().decoding_budget(MEMORY))}
    return (
        [sys.executable, "-c", bind],
        budget,
        "no control group on this machine (no systemd): bound to one core, with the settings that a container of 1 GiB "
        "gets, and the sum of all processes' memory (PSS) sampled every 50 ms",
    )


def family(server: Server) -> list[psutil.Process]:
    process = psutil.Process(server.process.pid)
    return [process, *process.children(recursive=True)]


def taken(server: Server) -> int:
    """The memory of the service's processes, what they share counted once."""
    total = 0
    for process in family(server):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


def decoders(server: Server) -> list[psutil.Process]:
    """The processes that decode: those that use the CPU below a worker."""
    found = []
    for worker in server.workers():
        for child in worker.children(recursive=True):
            try:
                if child.status() == psutil.STATUS_RUNNING:
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
    return found


def hostile(number: int) -> tuple[str, bytes, str]:
    """The name, the body and the Content-Type of one upload."""
    kinds = list(bombs.FULL_SIZE)
    if number % 3 == 2:
        small = corpus.upload(number)
        return small.kind, small.body, small.media_type
    kind = kinds[(number - number // 3) % len(kinds)]
    return kind, bombs.FULL_SIZE[kind](), "image/jpeg"


def test_two_hundred_hostile_pictures_on_one_core_and_a_gigabyte(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    within, settings, how = limits()
    seen, stop, lock = Seen(), threading.Event(), threading.Lock()
    numbers = iter(range(UPLOADS))
    large = bombs.portrait(8064, 6048)
    data = photograph.read_bytes()
    command = (*within, *SERVE, str(tiny_bundle), "--device", "cpu")
    with running(command, tmp_path, PROTOSERVE_ANSWER_SECONDS=str(ANSWER_SECONDS), **settings) as server:
        address = f"{server.address}/v1/predict"

        def leave(body: bytes) -> None:
            head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head % len(body) + body)
                time.sleep(0.3)
            with lock:
                seen.left += 1

        def attack() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                kind, body, media_type = hostile(number)
                if number % LEAVES == 1 and kind in bombs.FULL_SIZE:
                    leave(body)
                    continue
                headers = {b"content-type": media_type.encode("latin-1")} if media_type else {}
                start = time.monotonic()
                try:
                    response = httpx.post(address, content=body, headers=headers, timeout=120)
                except httpx.TransportError as error:
                    with lock:
                        seen.unanswered.append(f"{kind}: {error!r}")
                    continue
                seconds = time.monotonic() - start
                code = "" if response.status_code == 200 else response.json()["code"]
                with lock:
                    seen.answers[kind].append((response.status_code, code, seconds))

        def ask() -> None:
            while not stop.wait(0.2):
                start = time.monotonic()
                response = httpx.post(address, content=data, timeout=60)
                seen.good.append((response.status_code, time.monotonic() - start))

        def measure() -> None:
            while not stop.wait(0.05):
                seen.memory.append(taken(server))

        # Both decoding processes are started before the memory is measured.
        with ThreadPoolExecutor(2) as both:
            started = list(both.map(lambda body: httpx.post(address, content=body, timeout=60), [large, large]))
        assert {response.status_code for response in started} == {200}
        for _ in range(20):
            assert httpx.post(address, content=data).status_code == 200
        before = taken(server)
        workers = [worker.pid for worker in server.workers()]
        begun = time.monotonic()
        watchers = [threading.Thread(target=ask), threading.Thread(target=measure)]
        attackers = [threading.Thread(target=attack) for _ in range(2)]
        for thread in (*watchers, *attackers):
            thread.start()
        for thread in attackers:
            thread.join()
        spent = time.monotonic() - begun
        stop.set()
        for thread in watchers:
            thread.join()

        # No worker is held after its client left.
        held = time.monotonic()
        leave(bombs.FULL_SIZE["BMP of run lengths, 30 megapixels"]())
        wait_until(lambda: not decoders(server) and server.metric("protoserve_in_flight") <= 1, 20, server.log)
        held = time.monotonic() - held
        for _ in range(20):
            assert httpx.post(address, content=data).status_code == 200
        after = taken(server)
        killed = [worker.pid for worker in server.workers()] != workers
        assert httpx.get(f"{server.address}/readyz").status_code == 200
    if "PROTOSERVE_KEEP_RESULTS" in os.environ:
        keep(seen, how, before, after, spent, held)
    assert not killed
    assert "Traceback" not in server.log.read_text()
    assert not seen.unanswered
    statuses = Counter(status for answers in seen.answers.values() for status, _, _ in answers)
    assert {status for status in statuses if status >= 500} <= {503, 504}, statuses
    assert sum(statuses.values()) + seen.left > UPLOADS * 0.9
    late = {
        (kind, seconds)
        for kind, answers in seen.answers.items()
        for _, _, seconds in answers
        if seconds > ANSWER_SECONDS + LATE
    }
    assert not late
    assert len(seen.good) > 20
    assert {status for status, _ in seen.good} == {200}
    assert max(seconds for _, seconds in seen.good) < GOOD_SECONDS
    assert max(seen.memory) < MEMORY
    assert after < 1.2 * before
    assert held < 3


def keep(seen: Seen, how: str, before: int, after: int, spent: float, held: float) -> None:
    """Write benchmarks/results/hostile.json and hostile.md."""
    good = sorted(seconds for _, seconds in seen.good)
    found = machine()
    figures = {
        "uploads": UPLOADS,
        "answered": sum(map(len, seen.answers.values())),
        "clients that left": seen.left - 1,
        "unanswered": len(seen.unanswered),
        "seconds": round(spent, 1),
        "statuses": dict(
            sorted(Counter(str(status) for answers in seen.answers.values() for status, _, _ in answers).items())
        ),
        "slowest answer, s": round(max(seconds for answers in seen.answers.values() for _, _, seconds in answers), 2),
        "photograph: answers": len(good),
        "photograph: median, s": round(good[len(good) // 2], 3),
        "photograph: slowest, s": round(good[-1], 2),
        "memory before, MB": round(before / 1e6),
        "memory at its peak, MB": round(max(seen.memory) / 1e6),
        "memory after, MB": round(after / 1e6),
        "worker free after a client left, s": round(held, 2),
    }
    lines = [
        "# Hostile pictures on one core and 1 GiB",
        "",
        "`PROTOSERVE_KEEP_RESULTS=1 make test-faults` writes this file (`tests/e2e/test_hostile_load.py`): "
        f"{UPLOADS} pictures, two at a time, beside a client that sends a photograph every 0.2 s. Two thirds are bombs "
        "at full size (`tests/bombs.py`), the others are drawn from `tests/service/corpus.py`. Some clients leave "
        "without waiting for their answer. The memory before is that after two large pictures, with both decoding "
        "processes started.",
        "",
        f"{described(found)} Limits: {how}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures.items()),
        "",
        "| bomb | answers | slowest, s |",
        "|---|---|---|",
    ]
    for kind in bombs.FULL_SIZE:
        answers = seen.answers.get(kind, [])
        given = Counter(f"{status} {code}".strip() for status, code, _ in answers)
        slowest = f"{max(seconds for _, _, seconds in answers):.2f}" if answers else ""
        lines.append(f"| {kind} | {', '.join(f'{count} × {name}' for name, count in given.items())} | {slowest} |")
    write_results("hostile", {"machine": found, "limits": how, **figures}, "\n".join(lines) + "\n")

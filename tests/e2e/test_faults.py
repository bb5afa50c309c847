"""Faults under load, against the real service: every request is answered or refused, and it recovers by itself.

`make test-faults` runs them; they take minutes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests import bombs
from tests.e2e.serving import ROOT, SERVE, Server, command_of, free_port, running, serving, wait_until
from tests.service.bundles import rename_bundle

CLIENTS = 8
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PROTOSERVE_TEST_FAULTS" not in os.environ, reason="takes minutes: make test-faults"),
]


@dataclass
class Load:
    """The statuses, problem codes and versions that clients received, and the requests without an answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    versions: set[str] = field(default_factory=set)
    paths: set[tuple[str, ...]] = field(default_factory=set)
    unanswered: list[str] = field(default_factory=list)
    refused: int = 0
    seconds: list[float] = field(default_factory=list)


@contextmanager
def load(server: Server, photograph: Path, clients: int = CLIENTS) -> Iterator[Load]:
    """Clients that send requests without a pause, each on a connection of its own, until the end."""
    seen, lock, stop, data = Load(), threading.Lock(), threading.Event(), photograph.read_bytes()

    def ask() -> None:
        while not stop.is_set():
            begun = time.monotonic()
            try:
                response = httpx.post(
                    f"{server.address}/v1/predict", content=data, headers={"connection": "close"}, timeout=60
                )
            except httpx.ConnectError:
                with lock:
                    seen.refused += 1
                time.sleep(0.02)
                continue
            except httpx.TransportError as error:
                with lock:
                    seen.unanswered.append(repr(error))
                continue
            with lock:
                seen.seconds.append(time.monotonic() - begun)
                seen.statuses[response.status_code] += 1
                document = response.json()
                if response.status_code == 200:
                    seen.versions.add(document["model"]["version"])
                    seen.paths.add(tuple(document["path"]))
                else:
                    assert response.headers["content-type"] == "application/problem+json"
                    seen.codes[document["code"]] += 1

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)


def answered(seen: Load, more: int, seconds: float = 60) -> None:
    """Wait for `more` further good answers."""
    goal, deadline = seen.statuses[200] + more, time.monotonic() + seconds
    while seen.statuses[200] < goal:
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def test_a_killed_worker_costs_only_what_it_was_answering(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, tmp_path, "--workers", "2") as server:
        wait_until(lambda: len(server.workers()) == 2, 60, server.log)
        with load(server, photograph) as seen:
            answered(seen, 50)
            killed = server.workers()[0]
            killed.kill()
            answered(seen, 100)
            wait_until(
                lambda: len(server.workers()) == 2 and killed.pid not in {one.pid for one in server.workers()},
                60,
                server.log,
            )
            answered(seen, 50)
        # At most the request that each client had in flight to that worker.
        assert len(seen.unanswered) <= CLIENTS, seen.unanswered
        assert seen.refused == 0
        assert set(seen.statuses) <= {200, 503}
        assert len(seen.paths) == 1
        # The dead worker's requests do not stay counted as in flight.
        wait_until(lambda: server.metric("protoserve_in_flight") <= 1, 30, server.log)


def test_sigterm_answers_all_that_was_accepted(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, tmp_path, "--workers", "2") as server:
        with load(server, photograph) as seen:
            answered(seen, 50)
            before = psutil.Process(server.process.pid).children(recursive=True)
            # The supervisor and two workers.
            assert len(before) >= 3
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(40) == 0
        assert not [child for child in before if child.is_running()]
        lines = [line for line in server.lines() if line["route"] == "/v1/predict"]
        assert {line["status"] for line in lines} <= {200, 503}
        # Every answer of a worker reached its client.
        assert sum(line["status"] == 200 for line in lines) == seen.statuses[200]


def test_a_server_ends_when_its_parent_is_killed(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, tmp_path, "--workers", "2") as server:
        wait_until(lambda: len(server.workers()) == 2, 60, server.log)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.kill()
        server.process.wait()
        _, alive = psutil.wait_procs(family, 40)
        assert not alive


def test_workers_end_when_their_supervisor_is_killed(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, tmp_path, "--workers", "2") as server:
        wait_until(lambda: len(server.workers()) == 2, 60, server.log)
        workers = server.workers()
        [supervisor] = psutil.Process(server.process.pid).children()
        supervisor.kill()
        _, alive = psutil.wait_procs(workers, 40)
        assert not alive


def test_a_torn_bundle_is_refused_and_a_good_one_taken_under_load(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)

    def move(target: Path) -> None:
        (tmp_path / "draft").symlink_to(target)
        (tmp_path / "draft").replace(link)

    with serving(link, tmp_path, "--workers", "2", PROTOSERVE_RELOAD_SECONDS="0.3") as server:
        # A worker that has not started yet has no old model to keep.
        wait_until(lambda: server.log.read_text().count('"message": "ready"') == 2, 60, server.log)
        with load(server, photograph) as seen:
            answered(seen, 30)
            torn = rename_bundle(tiny_bundle, tmp_path / "torn")
            (torn / "model.onnx").write_bytes((torn / "model.onnx").read_bytes()[:1000])
            move(torn)
            wait_until(lambda: server.metric("protoserve_reloads_total", missing=0) >= 2, 30, server.log)
            answered(seen, 30)
            assert len(seen.versions) == 1
            move(rename_bundle(tiny_bundle, tmp_path / "next"))
            wait_until(lambda: server.metric("protoserve_reloads_total", missing=0) >= 4, 60, server.log)
            answered(seen, 50)
        assert (seen.unanswered, seen.refused, set(seen.statuses)) == ([], 0, {200})
        assert len(seen.versions) == 2
        assert httpx.get(f"{server.address}/v1/model").json()["name"] == "next"


def test_slow_clients_do_not_keep_others_from_answers(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    limits = {"PROTOSERVE_HEADER_SECONDS": "2", "PROTOSERVE_READ_SECONDS": "2"}
    with serving(tiny_bundle, tmp_path, **limits) as server:
        [worker] = server.workers()
        files = worker.num_fds()
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
        for number, connection in enumerate(slow):
            head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n"
            connection.sendall(head if number % 2 else head + b"Content-Length: 100000\r\n\r\nabc")
        with load(server, photograph, clients=4) as seen:
            answered(seen, 40)
            for connection in slow:
                connection.settimeout(20)
                received = b""
                try:
                    while chunk := connection.recv(65536):
                        received += chunk
                finally:
                    connection.close()
                assert received.startswith(b"HTTP/1.1 408"), received[:200]
                assert b'"code":"request_timeout"' in received
            answered(seen, 20)
        assert (seen.unanswered, set(seen.statuses)) == ([], {200})
        wait_until(lambda: worker.num_fds() <= files + 5, 20, server.log)


def test_clients_that_disconnect_leave_nothing_behind(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    data = photograph.read_bytes()
    with serving(tiny_bundle, tmp_path) as server:
        [worker] = server.workers()
        files = worker.num_fds()
        with load(server, photograph, clients=4) as seen:
            for number in range(300):
                with socket.create_connection(("127.0.0.1", server.port)) as connection:
                    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
                    connection.sendall(head + (data if number % 2 else data[: len(data) // 2]))
            answered(seen, 30)
        assert (seen.unanswered, set(seen.statuses) - {503}) == ([], {200})
        # The request for the metrics counts as one.
        wait_until(lambda: server.metric("protoserve_in_flight") <= 1, 30, server.log)
        assert server.metric("protoserve_queued") == 0
        wait_until(lambda: worker.num_fds() <= files + 5, 20, server.log)
    assert "Traceback" not in server.log.read_text()


def test_a_full_disk_for_temporary_files_costs_nothing(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk") as disk,
        serving(tiny_bundle, tmp_path, "--workers", "2", TMPDIR=str(disk)) as server,
    ):
        with load(server, photograph) as seen:
            answered(seen, 20)
            fill(disk)
            before = {worker.pid for worker in server.workers()}
            answered(seen, 100)
            # Use every route and refusal, so that new counters are written.
            for path in ("/v1/model", "/v1/taxonomy", "/v1/prototypes", "/v1/prototypes/0/image", "/", "/nope"):
                for method in ("GET", "PUT", "POST", "DELETE"):
                    httpx.request(method, f"{server.address}{path}", headers={"connection": "close"})
            answered(seen, 30)
        assert (seen.unanswered, seen.refused, set(seen.statuses)) == ([], 0, {200})
        assert {worker.pid for worker in server.workers()} == before
        assert server.metric("protoserve_rejected_total") >= 18
        assert server.metric("protoserve_requests_total") >= 150


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 16 MB, mounted at `folder`."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="space"), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(65536))
            filler.flush()


def test_a_full_disk_under_bentoml_home_costs_nothing(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    """As `bentoml serve` runs in a container whose model store is full; workers kept their metrics there, and died."""
    command = (sys.executable, "-m", "bentoml", "serve", "service.service:ProtoServe")
    with small_disk(tmp_path / "disk") as disk:
        settings = {"BENTOML_HOME": str(disk), "PROTOSERVE_BUNDLE": str(tiny_bundle), "PROTOSERVE_WORKERS": "2"}
        with running(command, tmp_path, PROTOSERVE_DEVICE="cpu", **settings) as server:
            wait_until(lambda: server.log.read_text().count('"message": "ready"') == 2, 60, server.log)
            fill(disk)
            killed = server.workers()[0]
            killed.kill()
            wait_until(lambda: killed.pid not in {worker.pid for worker in server.workers()}, 60, server.log)
            wait_until(lambda: server.log.read_text().count('"message": "ready"') == 3, 60, server.log)
            with load(server, photograph) as seen:
                answered(seen, 50)
            assert (seen.unanswered, seen.refused, set(seen.statuses)) == ([], 0, {200})
            assert server.metric("protoserve_requests_total") >= 50


def test_a_disk_that_is_full_from_the_start_is_said_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        ended = subprocess.run(
            [*SERVE, str(tiny_bundle), "--port", str(free_port())],
            cwd=ROOT,
            env={**os.environ, "PROTOSERVE_METRICS_DIRECTORY": str(disk)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 2
    assert "0 MiB free, and the metrics of 1 worker(s) need 4" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(not FAKETIME, reason="libfaketime sets the clock: apt-get install faketime")
def test_a_clock_that_jumps_costs_nothing(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    jumping = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        # As when a clock is set: the monotonic clock is not affected.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    # The check for a new model depends on file times, too.
    with serving(tiny_bundle, tmp_path, "--workers", "2", PROTOSERVE_RELOAD_SECONDS="0.2", **jumping) as server:
        wait_until(lambda: len(server.workers()) == 2, 60, server.log)
        before = {worker.pid for worker in server.workers()}
        begun = time.monotonic()
        with load(server, photograph) as seen:
            for jump in ("+0", "+36000", "-864000", "+864000000", "+0"):
                clock.write_text(f"{jump}\n")
                answered(seen, 40)
        spent = time.monotonic() - begun
        assert (seen.unanswered, seen.refused, set(seen.statuses)) == ([], 0, {200})
        assert len(seen.paths) == 1
        assert {worker.pid for worker in server.workers()} == before
        assert httpx.get(f"{server.address}/readyz").status_code == 200
        # No measured duration jumped with the clock, although the times of log lines did.
        years = {str(line["time"])[:4] for line in server.lines()}
        assert len(years) > 1, years
        for line in server.lines():
            assert 0 <= float(str(line["seconds"])) < spent
        assert 0 <= server.metric("protoserve_request_seconds_sum") < 2 * CLIENTS * spent
        assert 0 <= server.metric("protoserve_stage_seconds_sum") < 2 * CLIENTS * spent
        # Once the clock is back, requests are answered as before.
        response = httpx.post(f"{server.address}/v1/predict", content=photograph.read_bytes())
        assert response.status_code == 200
    assert "Traceback" not in server.log.read_text()


def decoders_of(worker: psutil.Process) -> list[psutil.Process]:
    """A worker's decoding processes."""
    return [child for child in worker.children() if "anyio.to_process" in command_of(child)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_decoding_processes_end_with_their_worker(how: signal.Signals, tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, tmp_path) as server:
        [worker] = server.workers()

        def send(width: int, height: int) -> None:
            with contextlib.suppress(httpx.TransportError):
                httpx.post(f"{server.address}/v1/predict", content=bombs.run_lengths(width, height), timeout=60)

        # One that soon waits for the next picture, and one in the midst of one.
        for size in ((8000, 3000), (2000, 1500)):
            threading.Thread(target=send, args=size, daemon=True).start()
        wait_until(lambda: len(decoders_of(worker)) == 2, 30, server.log)
        found = decoders_of(worker)
        (worker if how == signal.SIGKILL else psutil.Process(server.process.pid)).send_signal(how)
        # A picture in progress ends with its limit of CPU time at the latest.
        _, alive = psutil.wait_procs(found, 40)
        assert not alive

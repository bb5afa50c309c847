"""The real service, started by the command and from a built Bento, queried over HTTP, stopped by a signal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from protoserve.inference.classifier import load
from tests.service.bundles import rename_bundle
from tests.service.predictions import as_served
from tests.service.problems import check_problem

ROOT = Path(__file__).resolve().parents[2]
# Also in a checkout that is not installed, where the root command has no entry points to find this room by.
PROTOSERVE = (
    sys.executable,
    "-c",
    "from protoserve.cli.root import main; main()",
)
BENTOML = (sys.executable, "-m", "bentoml")
START_SECONDS = 240.0
STOP_SECONDS = 30.0

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """A running server, a client of it, and its log."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROTOSERVE_", "PROMETHEUS_"))}
    return {**kept, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true", **more}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: tuple[str, ...], home: Path, log: Path, *, cwd: Path = ROOT, **more: str) -> Iterator[Server]:
    """Start a server on a free port and wait until it is ready; at the end it must exit by itself on SIGTERM."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--host", "127.0.0.1"],
            cwd=cwd,
            env=environment(home, **more),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            wait_until_ready(client, process, log)
            yield Server(process, client, log)
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0, log.read_text()
        assert not [pid for pid in family if psutil.pid_exists(pid)], "processes are left behind"
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"not ready in {START_SECONDS} seconds: {log.read_text()}")


def check_predictions(client: httpx.Client, bundle: Path, photograph: Path) -> None:
    data = photograph.read_bytes()
    expected = as_served(load(bundle, device="cpu").predict(photograph)).model_dump_json()
    raw = client.post("/v1/predict", content=data, headers={"content-type": "image/jpeg"})
    assert (raw.status_code, raw.text) == (200, expected)
    form = client.post("/v1/predict", files={"image": ("photograph.jpg", data, "image/jpeg")})
    assert (form.status_code, form.text) == (200, expected)


def counted(client: httpx.Client, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", client.get("/metrics").text, flags=re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for given, value in found if all(pair in given for pair in wanted))


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until `holds` returns true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`protoserve serve` with two workers and a limit of 1 MB."""
    home = tmp_path_factory.mktemp("bentoml")
    command = (*PROTOSERVE, "serve", str(tiny_bundle), "--workers", "2", "--device", "cpu")
    with serving(command, home, home / "server.log", PROTOSERVE_MAX_BYTES="1000000") as server:
        yield server
    log = server.log.read_text()
    assert f"serving tiny at {server.client.base_url}".rstrip("/") in log
    assert "Traceback" not in log, log


def test_a_picture_is_answered_as_by_the_python_interface(server: Server, tiny_bundle: Path, photograph: Path) -> None:
    check_predictions(server.client, tiny_bundle, photograph)


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (b"", "image/jpeg", 400, "missing_image"),
        (b"hello", "image/jpeg", 415, "unsupported_image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg", 422, "broken_image"),
        (b"http://127.0.0.1:1/a.jpg", "text/plain", 415, "unsupported_media_type"),
        (b"x" * 1_000_001, "image/jpeg", 413, "request_too_large"),
        (b"hello", "multipart/form-data; boundary=x", 400, "invalid_multipart"),
    ],
)
def test_a_bad_upload_is_a_problem(server: Server, body: bytes, media_type: str, status: int, code: str) -> None:
    response = server.client.post("/v1/predict", content=body, headers={"content-type": media_type})
    assert check_problem(response, code)["status"] == status


def test_an_upload_of_undeclared_length_is_cut_off_and_the_server_goes_on(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 100_000

    response = server.client.post("/v1/predict", content=chunks(), headers={"content-type": "image/jpeg"})
    check_problem(response, "request_too_large")
    assert server.client.get("/v1/model").status_code == 200


def test_an_address_in_place_of_a_picture_is_never_fetched(server: Server) -> None:
    contacted = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def watch() -> None:
            try:
                listener.accept()[0].close()
            except OSError:
                return
            contacted.set()

        thread = threading.Thread(target=watch)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg".encode()
        form: Any = {"image": (None, address)}
        check_problem(server.client.post("/v1/predict", files=form), "unexpected_part")
        form = {"image": ("a.jpg", address)}
        check_problem(server.client.post("/v1/predict", files=form), "unsupported_image")
        body = json.dumps({"image": address.decode()})
        headers = {"content-type": "application/json"}
        check_problem(server.client.post("/v1/predict", content=body, headers=headers), "unsupported_media_type")
        time.sleep(0.3)
        assert not contacted.is_set()
        # The monitor works: it notices this connection.
        socket.create_connection(listener.getsockname()[:2]).close()
        assert contacted.wait(5)
        thread.join()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/model/", 404, "not_found"),
        ("GET", "/docs.json", 404, "not_found"),
        ("GET", "/static_content/index.css", 404, "not_found"),
        ("PUT", "/schema.json", 404, "not_found"),
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("POST", "/v1/predict?top_k=x", 400, "invalid_parameter"),
    ],
)
def test_the_shape_of_errors_holds_beside_bentoml_s_own_routes(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    assert check_problem(server.client.request(method, path), code)["status"] == status


def test_probes_and_the_page(server: Server) -> None:
    assert [server.client.get(path).status_code for path in ("/livez", "/readyz", "/healthz")] == [200] * 3
    assert server.client.get("/").headers["content-type"].startswith("text/html")
    assert server.client.get("/openapi.json").json()["info"]["title"] == "ProtoServe"


def test_counts_of_all_workers_add_up_and_another_server_does_not_touch_them(
    server: Server, tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    labels = {"route": "/v1/predict", "status": "200"}
    before = counted(server.client, "protoserve_requests_total", **labels)
    data = photograph.read_bytes()
    for _ in range(20):
        # Use one connection per request, so that both workers get some.
        httpx.post(server.client.base_url.join("/v1/predict"), content=data).raise_for_status()
    # A worker counts a request once its answer is sent, which the client may see first.
    wait_until(lambda: counted(server.client, "protoserve_requests_total", **labels) == before + 20)
    assert counted(server.client, "protoserve_model_info") == 1
    # BentoML empties the metrics folder that all servers of a home share; ours must not lie there.
    home = server.log.parent
    command = (*PROTOSERVE, "serve", str(tiny_bundle))
    with serving(command, home, tmp_path / "other.log") as other:
        assert counted(other.client, "protoserve_requests_total", **labels) == 0
    assert counted(server.client, "protoserve_requests_total", **labels) == before + 20


def test_a_publication_is_built_into_a_bento_that_answers_by_itself(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    home, elsewhere = tmp_path / "bentoml", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    refusal = subprocess.run(
        [*BENTOML, "build"], cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=120
    )
    assert refusal.returncode != 0
    assert "publish one with 'protoserve publish BUNDLE'" in refusal.stdout + refusal.stderr

    published = json.loads(call(*PROTOSERVE, "publish", str(tiny_bundle), "--json"))
    bento = call(*BENTOML, "build", "--output", "tag").rpartition("__tag__:")[2].strip()
    folder = home / "bentos" / bento.replace(":", "/")
    assert published["tag"] in (folder / "bento.yaml").read_text()
    packed = {file.relative_to(folder / "src").as_posix() for file in folder.rglob("src/**/*") if file.is_file()}
    assert {"service/page/index.html", "service/page/style.css", "service/page/main.mjs"} <= packed
    assert not [name for name in packed if name.startswith(("protoserve/networks", "training", "export", "tests"))]
    assert "torch" not in (folder / "env" / "python" / "requirements.txt").read_text()

    # A later publication does not change a built Bento.
    call(*PROTOSERVE, "publish", str(rename_bundle(tiny_bundle, tmp_path / "later")))
    with serving((*BENTOML, "serve", bento), home, tmp_path / "bento.log", cwd=elsewhere) as server:
        check_predictions(server.client, tiny_bundle, photograph)
        check_problem(server.client.get("/nope"), "not_found")
        for worker in psutil.Process(server.process.pid).children(recursive=True):
            assert not [entry.path for entry in worker.memory_maps() if "torch" in entry.path]
    with serving((*BENTOML, "serve", "service.service:ProtoServe"), home, tmp_path / "newest.log") as server:
        assert server.client.get("/v1/model").json()["name"] == "later"


def test_a_bundle_that_breaks_after_publication_stops_the_server_with_one_message(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_bundle, tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"")
    done = subprocess.run(
        [*BENTOML, "serve", "service.service:ProtoServe", "--port", str(free_port())],
        cwd=ROOT,
        env=environment(tmp_path / "bentoml", PROTOSERVE_BUNDLE=str(broken)),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("model.onnx does not match") == 1

"""The commands `serve`, `publish` and `key`: their refusals, output and imports."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOSERVE = "from protoserve.cli.root import main; main()"


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROTOSERVE, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "BENTOML_HOME": str(home), **environment},
    )


def refused(answer: subprocess.CompletedProcess[str], *said: str) -> None:
    assert (answer.returncode, answer.stdout) == (2, ""), answer.stderr
    assert answer.stderr.startswith("error: ")
    assert "Traceback" not in answer.stderr
    for words in said:
        assert words in answer.stderr


def test_serve_refuses_an_invalid_bundle(tmp_path: Path, tiny_bundle: Path) -> None:
    refused(run("serve", str(tmp_path / "missing"), home=tmp_path), "no such bundle")
    torn = shutil.copytree(tiny_bundle, tmp_path / "torn")
    (torn / "model.onnx").unlink()
    refused(run("serve", str(torn), home=tmp_path), "model.onnx is missing")


def test_serve_refuses_a_port_in_use(tmp_path: Path, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(run("serve", str(tiny_bundle), "--port", port, home=tmp_path), f"port {port}", "another --port")


def test_serve_refuses_an_address_of_another_machine(tmp_path: Path, tiny_bundle: Path) -> None:
    refused(run("serve", str(tiny_bundle), "--host", "192.0.2.1", home=tmp_path), "192.0.2.1", "--host")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70 + ".example", "256.1.1.1"])
def test_serve_refuses_a_host_that_has_no_address(tmp_path: Path, tiny_bundle: Path, host: str) -> None:
    refused(run("serve", str(tiny_bundle), "--host", host, home=tmp_path), f"cannot listen on {host}", "--host")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", socket.gethostname()])
def test_serve_finds_the_port_of_a_named_host_in_use(tmp_path: Path, tiny_bundle: Path, host: str) -> None:
    address = socket.gethostbyname(host)
    with socket.create_server((address, 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = run("serve", str(tiny_bundle), "--host", host, "--port", port, home=tmp_path)
    refused(answer, f"cannot listen on {host} port {port}")


def test_serve_refuses_a_folder_for_metrics_that_cannot_be_made(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "metrics")
    refused(run("serve", str(tiny_bundle), home=tmp_path, PROTOSERVE_METRICS_DIRECTORY=folder), folder)


def test_serve_refuses_invalid_settings(tmp_path: Path, tiny_bundle: Path) -> None:
    answer = run("serve", str(tiny_bundle), home=tmp_path, PROTOSERVE_MAX_BYTES="much")
    refused(answer, "PROTOSERVE_MAX_BYTES='much'")


@pytest.mark.parametrize("arguments", [("--port", "0"), ("--workers", "0"), ("--device", "tpu"), ("--prot", "1")])
def test_serve_refuses_options_out_of_range(tmp_path: Path, tiny_bundle: Path, arguments: tuple[str, ...]) -> None:
    answer = run("serve", str(tiny_bundle), *arguments, home=tmp_path)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr


def test_publish_refuses_an_invalid_bundle(tmp_path: Path) -> None:
    refused(run("publish", str(tmp_path / "missing"), home=tmp_path / "home"), "no such bundle")


@pytest.mark.parametrize("variable", ["HOME", "BENTOML_HOME"])
def test_publish_says_where_its_store_cannot_be_written(tmp_path: Path, tiny_bundle: Path, variable: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "BENTOML_HOME"}
    answer = subprocess.run(
        [sys.executable, "-c", PROTOSERVE, "publish", str(tiny_bundle)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, variable: "/dev/null/nowhere"},
    )
    refused(answer, "/dev/null/nowhere", "can't write the model store", "BENTOML_HOME")


def test_key_prints_a_secret_and_its_hash(tmp_path: Path) -> None:
    answer = run("key", "camera", "--json", home=tmp_path)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert document["setting"] == f"camera:{hashlib.sha256(document['key'].encode()).hexdigest()}"
    refused(run("key", "a b", home=tmp_path), "'a b'")


def test_without_bentoml_the_message_names_the_extra(tmp_path: Path, tiny_bundle: Path) -> None:
    hidden = (
        "import importlib.util as util; find = util.find_spec; "
        "util.find_spec = lambda name, *rest: None if name == 'bentoml' else find(name, *rest); "
    )
    for command in ("serve", "publish"):
        answer = subprocess.run(
            [sys.executable, "-c", hidden + PROTOSERVE, command, str(tiny_bundle)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        refused(answer, f"{command} needs the extra 'serve'", "pip install 'protoserve[serve]'")


def imported(code: str) -> set[str]:
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PROTOSERVE_BUNDLE": "anything"},
    )
    assert answer.returncode == 0, answer.stderr
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}


def test_the_commands_import_nothing_heavy_until_they_run() -> None:
    modules = imported("import service.commands")
    assert not modules & {"bentoml", "starlette", "prometheus_client", "onnxruntime", "numpy"}

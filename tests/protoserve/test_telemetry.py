"""Nothing leaves the machine unasked: real processes with an empty home, without CI's variables, the network watched.

Libraries keep still under `CI=true`, so a test that inherits it would see nothing.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protoserve.telemetry import NO_REPORTS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "onnx_edge.py"
OF_CI = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "TRAVIS", "CIRCLECI", "GITLAB_CI", "TEAMCITY_VERSION")
STRACE = shutil.which("strace")
# Python's own calls, for machines without strace: each is written to the file that WATCH names.
WATCHER = """
import json, os, sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        with open(os.environ["WATCH"], "a") as log:
            log.write(json.dumps([event, repr(arguments)]) + "\\n")

sys.addaudithook(watch)
"""


def calls(command: list[str], folder: Path, *, path: Path | None = ROOT) -> tuple[list[str], list[str]]:
    """(files made in the home directory, attempts to reach another machine) of a command that must succeed."""
    home, site, log, trace = folder / "home", folder / "site", folder / "python.log", folder / "trace"
    for directory in (home, site):
        directory.mkdir()
    (site / "sitecustomize.py").write_text(WATCHER)
    hidden = {*OF_CI, *NO_REPORTS, "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    environment = {
        **kept,
        "HOME": str(home),
        "MPLCONFIGDIR": str(folder),
        "PYTHONPATH": os.pathsep.join(str(entry) for entry in (site, path) if entry is not None),
        "WATCH": str(log),
    }
    traced = [] if STRACE is None else [STRACE, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(trace)]
    ended = subprocess.run([*traced, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    made = [file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file()]
    asked = [line for line in (log.read_text().splitlines() if log.exists() else []) if "127.0.0.1" not in line]
    if trace.exists():
        lines = trace.read_text(errors="replace").splitlines()
        outside = re.compile(r"sa_family=AF_INET6?\b(?!.*(127\.0\.0\.1|inet_pton\(AF_INET6, \"::1\"))")
        asked += [line for line in lines if outside.search(line)]
    return made, asked


def predicting(bundle: Path, photograph: Path) -> str:
    return f"import protoserve; print(protoserve.load({str(bundle)!r}).predict({str(photograph)!r}).path)"


def test_the_watch_sees_what_onnxruntime_does_by_itself(tmp_path: Path) -> None:
    made, _ = calls([sys.executable, "-c", "import onnxruntime"], tmp_path, path=None)
    if not made:
        pytest.skip("this onnxruntime writes no device id")
    assert any("onnxruntime" in name for name in made)


def test_the_watch_sees_a_question_to_the_network(tmp_path: Path) -> None:
    code = "import socket\ntry:\n    socket.getaddrinfo('example.invalid', 80)\nexcept OSError:\n    pass"
    _, asked = calls([sys.executable, "-c", code], tmp_path, path=None)
    assert asked


def test_a_prediction_in_python_reports_nothing(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    assert calls([sys.executable, "-c", predicting(tiny_bundle, photograph)], tmp_path) == ([], [])


def test_a_process_started_by_ours_reports_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, protoserve\n"
        f"subprocess.run([sys.executable, '-c', 'import onnxruntime as o; o.InferenceSession("
        f'{json.dumps(str(tiny_bundle / "model.onnx"))}, providers=["CPUExecutionProvider"])'
        "'], check=True)"
    )
    assert calls([sys.executable, "-c", code], tmp_path) == ([], [])


def test_the_example_for_the_edge_reports_nothing(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    """It runs where this project can't be imported."""
    command = [sys.executable, str(EXAMPLE), str(tiny_bundle / "model.onnx"), str(photograph)]
    assert calls(command, tmp_path, path=None) == ([], [])


def test_the_runtimes_of_targets_report_nothing(tmp_path: Path) -> None:
    """OpenVINO reports its import to an analytics host unless the package that reports is out of reach."""
    pytest.importorskip("openvino")
    code = "from export.targets import openvino_files, onnx_files; openvino_files._openvino().Core()"
    assert calls([sys.executable, "-c", code], tmp_path) == ([], [])


def test_a_variable_that_the_user_set_stays(tmp_path: Path) -> None:
    code = "import os, protoserve; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['BENTOML_DO_NOT_TRACK'])"
    environment = {name: value for name, value in os.environ.items() if name not in NO_REPORTS}
    environment |= {"ORT_DISABLE_TELEMETRY": "0", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "0 true\n"


def imported_first(file: Path) -> Iterator[str]:
    """The modules that a file imports at its top, in order."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


def test_no_module_imports_onnxruntime_before_ours() -> None:
    """Modules of `protoserve` itself run its `__init__` first; all others must import it before."""
    for folder in ("training", "export", "service", "benchmarks", "scripts"):
        for file in (ROOT / folder).rglob("*.py"):
            names = [name.partition(".")[0] for name in imported_first(file)]
            if "onnxruntime" in names:
                assert "protoserve" in names[: names.index("onnxruntime")], file


def test_the_container_sets_the_variables() -> None:
    template = (ROOT / "deploy" / "container" / "Dockerfile.template").read_text()
    for name in ("ORT_DISABLE_TELEMETRY", "BENTOML_DO_NOT_TRACK"):
        assert f"    {name}={NO_REPORTS[name]} \\\n" in template

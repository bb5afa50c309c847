"""The BentoML service: its imports and the folder of its metrics. tests/e2e runs the service itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_service_imports_no_training_libraries() -> None:
    ended = run_python(
        "import json, sys, service.service; print(json.dumps(sorted(sys.modules)))", PROTOSERVE_BUNDLE="anything"
    )
    assert ended.returncode == 0, ended.stderr
    modules = {name.partition(".")[0] for name in json.loads(ended.stdout)}
    assert {"bentoml", "starlette", "onnxruntime"} <= modules
    assert not modules & {"torch", "torchvision", "matplotlib", "sklearn", "onnx", "training", "export"}


def test_all_metrics_are_kept_in_the_directory_of_the_setting(tmp_path: Path) -> None:
    ours, bentomls = tmp_path / "ours", tmp_path / "bentoml"
    for directory in (ours, bentomls):
        directory.mkdir()
    ended = run_python(
        "import service.service as s; s.metrics.IN_FLIGHT.inc(); s.metrics.REQUESTS.labels('/', 'GET', 200).inc()",
        PROTOSERVE_BUNDLE="anything",
        PROTOSERVE_METRICS_DIRECTORY=str(ours),
        PROMETHEUS_MULTIPROC_DIR=str(bentomls),
    )
    assert ended.returncode == 0, ended.stderr
    names = {file.name.partition("_")[0] for file in ours.glob("*.db")}
    assert {"counter", "gauge", "histogram"} <= names
    assert list(bentomls.glob("*.db")) == []


def test_an_invalid_setting_is_named() -> None:
    ended = run_python("import service.service", PROTOSERVE_BUNDLE="anything", PROTOSERVE_WORKERS="many")
    assert ended.returncode != 0
    assert "PROTOSERVE_WORKERS='many'" in ended.stderr


def test_a_service_without_any_bundle_says_how_to_publish_one(tmp_path: Path) -> None:
    ended = run_python("import service.service", BENTOML_HOME=str(tmp_path))
    assert ended.returncode != 0
    assert "publish one with 'protoserve publish BUNDLE'" in ended.stderr

"""The BentoML service: its imports and the folders of its metrics. tests/e2e runs the service itself."""

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


WORKER = "from bentoml._internal.context import server_context; server_context.worker_index = 1; "


def test_all_metrics_of_a_worker_are_kept_in_the_folder_of_its_supervisor(tmp_path: Path) -> None:
    ours, bentomls = tmp_path / "ours", tmp_path / "bentoml"
    bentomls.mkdir()
    ended = run_python(
        # As the supervisor does, then as a worker of it does.
        "from pathlib import Path; from service.operations.metrics_folder import claim_folder; "
        f"folder = claim_folder(Path({str(ours)!r})); {WORKER}"
        "import service.service as s; s.metrics.IN_FLIGHT.inc(); s.metrics.REQUESTS.labels('/', 'GET', 200).inc(); "
        "print(sorted(file.name.partition('_')[0] for file in folder.glob('*.db')))",
        PROTOSERVE_BUNDLE="anything",
        PROMETHEUS_MULTIPROC_DIR=str(bentomls),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "['counter', 'gauge', 'gauge', 'histogram']"
    assert list(bentomls.glob("*.db")) == []


def test_a_folder_for_metrics_that_does_not_exist_costs_nothing(tmp_path: Path) -> None:
    ended = run_python(
        "import service.service as s; s.metrics.IN_FLIGHT.inc()",
        PROTOSERVE_BUNDLE="anything",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "missing"),
    )
    assert ended.returncode == 0, ended.stderr


def test_an_invalid_setting_is_named() -> None:
    ended = run_python("import service.service", PROTOSERVE_BUNDLE="anything", PROTOSERVE_WORKERS="many")
    assert ended.returncode != 0
    assert "PROTOSERVE_WORKERS='many'" in ended.stderr


def test_a_service_without_any_bundle_says_how_to_publish_one(tmp_path: Path) -> None:
    ended = run_python("import service.service", BENTOML_HOME=str(tmp_path))
    assert ended.returncode != 0
    assert "publish one with 'protoserve publish BUNDLE'" in ended.stderr

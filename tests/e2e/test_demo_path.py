"""The demo's own script, as `make demo` runs it, with few pictures and a tiny network."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from protoserve.schema import Prediction

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Path("test/Creature/Beetle/Ladybird/ladybird_0001.png")
CONFIG = """
name: tiny
batch: 16
image: {height: 32, width: 32, resize: stretch}
model: {backbone: resnet18, weights: null, stride: 8, reduced: null, dimensions: 16, prototypes_per_child: 2}
data: {hold_out: 0}
finetune: {epochs: 1}
joint: {epochs: 1, backbone_learning_rate: 1.0e-4}
last_layers: {epochs: 1}
"""


@dataclass(frozen=True)
class Demo:
    """A finished demo: its folder, its environment and its output."""

    folder: Path
    environment: dict[str, str]
    ended: subprocess.CompletedProcess[str]

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "tiny.yaml").write_text(CONFIG)
    environment = {
        **os.environ,
        # The script finds its commands in the environment that runs the tests.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DEMO": str(folder),
        "CONFIG": str(folder / "tiny.yaml"),
        "PER_LEAF": "4",
        # No network this small has all its evidence on the object.
        "OBJECT": "1",
        # A network this small is slower with threads, above all on a busy machine.
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [ROOT / "scripts" / "demo.sh"], env=environment, cwd=folder, capture_output=True, text=True, timeout=540
    )
    return Demo(folder, environment, ended)


def protoserve(*arguments: str | Path) -> str:
    """The standard output of a command, which must succeed."""
    command = [sys.executable, "-c", "from protoserve.cli.root import main; main()", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_demo_runs_every_step_and_exits_with_its_verdict(demo: Demo) -> None:
    """So few pictures teach a network little, so this does not test whether the answer is right.

    Evidence off the object fails the demo, but only after its answer.
    """
    verdicts = [line for line in demo.ended.stdout.splitlines() if re.match(r"level \d+: (right|WRONG), ", line)]
    expected = ["Creature", "Beetle", "Ladybird"]
    assert [line.rpartition(" ")[2] for line in verdicts] == expected, demo.ended.stderr
    assert demo.ended.returncode == 1
    assert "--require-object asks for 100% at every level" in demo.ended.stderr
    assert "Traceback" not in demo.ended.stderr
    assert re.search(r"first evidence on the object: \d+% at level 1", demo.ended.stdout)
    with Image.open(demo.folder / "explanation.png") as picture:
        assert min(picture.size) > 300


def test_the_demo_answers_over_http_as_the_bundle_does(demo: Demo) -> None:
    document = protoserve("predict", demo.bundle, demo.folder / "data" / PICTURE, "--top-k", "2", "--json")
    prediction = Prediction.model_validate_json(document)
    printed = demo.ended.stdout.splitlines()
    for number, level in enumerate(prediction.levels):
        assert f"{'    ' * number}{level.label}  {level.probability:.1%}" in printed


def test_the_demo_stops_its_server(demo: Demo) -> None:
    (line,) = [line for line in demo.ended.stdout.splitlines() if line.startswith("$ protoserve serve")]
    port = int(line.split("--port ")[1].split()[0])
    assert "Starting" in (demo.folder / "server.log").read_text()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_the_exported_graph_scores_as_the_run(demo: Demo) -> None:
    where = ("--data", demo.folder / "data", "--split", "test", "--json")
    run = json.loads(protoserve("evaluate", demo.folder / "run", *where))
    bundle = json.loads(protoserve("validate", demo.bundle, *where))
    assert run.keys() == bundle.keys() >= {"accuracy", "promise", "images", "macro_accuracy", "seconds"}
    assert list(run["accuracy"]) == ["level_1", "level_2", "level_3", "leaf"]
    assert bundle["accuracy"] == pytest.approx(run["accuracy"], abs=0.001)
    assert bundle["macro_accuracy"] == pytest.approx(run["macro_accuracy"], abs=0.001)
    pictures = list((demo.folder / "data" / "test").rglob("*.png"))
    assert run["images"] == bundle["images"] == len(pictures)
    kept = json.loads((demo.folder / "run" / "metrics.json").read_text())
    assert kept["test"]["accuracy"] == run["accuracy"]


def test_inspect_describes_the_bundle(demo: Demo) -> None:
    document = json.loads(protoserve("inspect", demo.bundle, "--json"))
    text = json.dumps(document)
    for fact in ("demo", "Creature/Beetle/Ladybird", "model.onnx", "model.torchscript", "sha256:"):
        assert fact in text
    assert "16 leaves" in protoserve("inspect", demo.bundle)
    assert "Ladybird" in protoserve("inspect", demo.bundle, "--all")


def test_serve_takes_the_finished_bundle_and_stops_when_told(demo: Demo) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = subprocess.Popen(
        [ROOT / "scripts" / "demo.sh", "serve"],
        env={**demo.environment, "PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        answer = wait_for(f"http://127.0.0.1:{port}/v1/model", script)
    finally:
        script.send_signal(signal.SIGTERM)
        said, _ = script.communicate(timeout=60)
    assert answer["name"] == "demo"
    assert script.returncode == 0, said
    assert "protoserve train" not in said
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def wait_for(address: str, process: subprocess.Popen[str]) -> Any:
    """The JSON at an address, as soon as it answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as response:
                return json.load(response)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"{address} did not answer; the server's exit code is {process.poll()}")

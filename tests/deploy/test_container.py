"""The image for CPUs: built, run by crun with a read-only root, and queried over HTTP by `make test-container`.

It needs root, buildah and crun, minutes, and a base image: PROTOSERVE_TEST_BASE names one, scripts/container_base.sh
makes one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from protoserve.inference.classifier import load

ROOT = Path(__file__).resolve().parents[2]
BENTO_PATH = Path("home/bentoml/bento")
MOST_MEGABYTES = 600
USER = 1034
BUILD_SECONDS, START_SECONDS, STOP_SECONDS = 1800, 240, 60

CRUN = ("crun", "--cgroup-manager", "disabled")
# crun refuses machines with control groups of both versions, even when it must not make any.
_WITHOUT_CGROUPS = 'mount -t tmpfs tmpfs /sys/fs/cgroup; exec "$@"'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_SECONDS + START_SECONDS)]


@dataclass(frozen=True)
class Image:
    """A built image: its files and its configuration."""

    root: Path
    config: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config["Env"])


@dataclass(frozen=True)
class Running:
    """A running image: crun's process, its address, its log and its name."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path
    name: str
    port: int


def run(*command: str, timeout: float = 120, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def image(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    base = os.environ.get("PROTOSERVE_TEST_BASE")
    if not base:
        pytest.skip("PROTOSERVE_TEST_BASE names no image to build on; `make test-container` makes one")
    missing = [name for name in ("buildah", "crun") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"it takes root, buildah and crun; missing: {', '.join(missing) or 'root'}")
    home = tmp_path_factory.mktemp("bentoml")
    run(
        "scripts/container.sh",
        str(tiny_bundle),
        "cpu",
        "buildah",
        timeout=BUILD_SECONDS,
        BASE_IMAGE=base,
        NETWORK="host",
        BENTOML_HOME=str(home),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    container = run("buildah", "from", "--pull-never", "protoserve:cpu").strip()
    try:
        root = Path(run("buildah", "mount", container).strip())
        inspected = json.loads(run("buildah", "inspect", "--type", "image", "protoserve:cpu"))
        yield Image(root, inspected["Docker"]["config"])
    finally:
        run("buildah", "rm", container)


def crun_configuration(image: Image, command: list[str], port: int, hosts: Path) -> dict[str, Any]:
    """Confine the image as deploy/compose.yaml does: only /tmp is writable, no capabilities, no new privileges.

    The network is the machine's, and no limits of memory or CPU are set.
    """
    environment = image.environment | {"BENTOML_PORT": str(port)}
    bind = ["rbind", "nosuid", "ro"]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(image.root), "readonly": True},
        "process": {
            "user": {"uid": USER, "gid": USER},
            "args": command,
            "cwd": image.config["WorkingDir"],
            "env": [f"{name}={value}" for name, value in environment.items()],
            "noNewPrivileges": True,
            "capabilities": {name: [] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "mode=1777"]},
            {
                "destination": "/tmp",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "noexec", "mode=1777", "size=256m"],
            },
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": bind},
            # Docker and Podman give every container this file.
            {"destination": "/etc/hosts", "type": "bind", "source": str(hosts), "options": bind},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "mount")]},
    }


@pytest.fixture(scope="module")
def running(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("crun")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    configuration = crun_configuration(image, image.config["Entrypoint"], port, hosts)
    (folder / "config.json").write_text(json.dumps(configuration))
    name, log = f"protoserve-test-{os.getpid()}", folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _WITHOUT_CGROUPS, "sh", *CRUN, "run", "--bundle", str(folder), name],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            wait_until_ready(client, process, log)
            yield Running(process, client, log, name, port)
    finally:
        subprocess.run([*CRUN, "delete", "--force", name], capture_output=True)
        process.wait(STOP_SECONDS)


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"not ready in {START_SECONDS} seconds: {log.read_text()}")


def installed(image: Image) -> dict[str, str]:
    lines = (image.root / "app" / "packages.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_it_holds_what_answers_in_the_tested_versions_and_no_torch(image: Image) -> None:
    packages = installed(image)
    assert {"bentoml", "onnxruntime", "numpy", "pillow"} <= packages.keys()
    # BentoML brings nvidia-ml-py, a binding of 50 kB; CUDA's libraries are the large ones.
    cuda = {name for name in packages if name.startswith(("nvidia-", "onnxruntime-gpu"))} - {"nvidia-ml-py"}
    assert not cuda | {name for name in packages if "torch" in name}
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    differing = {
        name: version
        for name, version in packages.items()
        if tested.get(name.lower().replace("_", "-"), version) != version
    }
    assert not differing
    unknown = [name for name in packages if name.lower().replace("_", "-") not in tested]
    assert not unknown, f"constraints.txt does not pin {unknown}"
    assert not [*image.root.glob("app/lib/python3*/site-packages/torch*")]


def test_its_bill_of_materials_lists_what_is_installed(image: Image) -> None:
    bill = json.loads((image.root / "app" / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert {(part["name"], part["version"]) for part in bill["components"]} >= set(installed(image).items())


def test_no_compiler_and_no_installer_is_left_behind(image: Image) -> None:
    found = {
        path.name for folder in ("app/bin", "usr/bin", "usr/local/bin") for path in (image.root / folder).glob("*")
    }
    assert not found & {"gcc", "cc", "make", "git", "curl", "uv"}
    assert not {"pip", "pip3"} & {path.name for path in (image.root / "app" / "bin").iterdir()}
    assert not (image.root / "build").exists()


def test_it_is_small_beside_the_model(image: Image) -> None:
    def kilobytes(path: Path) -> int:
        return int(run("du", "--summarize", "--one-file-system", "--block-size=1K", str(path)).split()[0])

    own = (kilobytes(image.root) - kilobytes(image.root / BENTO_PATH / "models")) / 1024
    print(f"image: {own:.0f} MiB, of which /app {kilobytes(image.root / 'app') / 1024:.0f} MiB")
    assert own * 1.048576 <= MOST_MEGABYTES


def test_who_serves_owns_nothing_that_is_served(image: Image) -> None:
    assert image.config["User"].split(":")[0] == str(USER)
    for folder in (image.root / BENTO_PATH, image.root / "app"):
        for path in folder.rglob("*"):
            status = path.lstat()
            assert status.st_uid == 0, path
            assert path.is_symlink() or not status.st_mode & 0o022, path


def test_it_answers_with_a_read_only_root_as_the_python_interface_does(
    running: Running, tiny_bundle: Path, photograph: Path
) -> None:
    expected = load(tiny_bundle, device="cpu").predict(photograph).model_dump(mode="json")
    answer = running.client.post("/v1/predict", content=photograph.read_bytes(), headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200, answer.text
    given = answer.json()
    assert given["path"] == expected["path"] and given["model"] == expected["model"]
    for one, other in zip(given["levels"], expected["levels"], strict=True):
        # The image has another onnxruntime, the one for CPUs, in single precision.
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert one["logit"] == pytest.approx(other["logit"], abs=1e-4)
    assert running.client.get("/nope").headers["content-type"] == "application/problem+json"
    assert "protoserve_requests_total" in running.client.get("/metrics").text


def test_its_root_is_read_only_and_its_user_has_no_rights(running: Running) -> None:
    within = [*CRUN, "exec", running.name]
    refused = subprocess.run([*within, "touch", "/app/x"], capture_output=True, text=True)
    assert refused.returncode != 0 and "Read-only file system" in refused.stderr
    status = run(*within, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(USER)] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_its_health_check_passes_while_it_is_ready_and_fails_where_nothing_listens(
    image: Image, running: Running
) -> None:
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    within = [*CRUN, "exec", running.name]
    assert subprocess.run([*within, *command], timeout=60).returncode == 0
    elsewhere = subprocess.run([*within, "env", "BENTOML_PORT=1", *command], timeout=60, capture_output=True, text=True)
    assert elsewhere.returncode != 0 and "refused" in elsewhere.stderr


def test_it_ends_cleanly_when_asked_to(running: Running) -> None:
    run(*CRUN, "kill", running.name, str(int(signal.SIGTERM)))
    assert running.process.wait(STOP_SECONDS) == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()

"""The wheel holds all that the commands need: installed into an empty environment, it works from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path

import pytest
import typer

from tests.e2e.serving import running

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protoserve", "training", "export", "service")
ALL = pytest.mark.skipif("PROTOSERVE_TEST_INSTALL" not in os.environ, reason="downloads packages: make test-install")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from a copy without what earlier builds left."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], folder)
    [built] = folder.glob("*.whl")
    return built


def run(command: list[str | Path], folder: Path) -> str:
    """What a command prints; fails with what it prints on standard error."""
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        list(map(str, command)), cwd=folder, env=outside, capture_output=True, text=True, timeout=550
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def environment(folder: Path) -> Path:
    """The folder of the programs of a new, empty environment."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    listed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    # pyproject.toml names the kinds of files; one that it misses would be missing only from the installed package.
    assert {name for name in tracked.stdout.split() if (ROOT / name).is_file()} <= listed
    assert {name.partition("/")[0] for name in listed} == set(PACKAGES)


# The first sample picture of the packaged model.
SAMPLE = "from protoserve.bundle.packaged import FOLDER; print(FOLDER / 'samples' / '0.png')"


def test_it_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "environment")
    run([sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", wheel], tmp_path)
    site = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "environment")})
    # The requirements come from this environment; its own copy of the project is no .pth of that one.
    (Path(site) / "requirements.pth").write_text(f"{Path(typer.__file__).parents[1]}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run([programs / "python", "-c", "import protoserve; print(protoserve.__file__)"], elsewhere)
    assert Path(where.strip()).is_relative_to(site)
    assert "frozen" in run([programs / "protoserve", "train", "--list-recipes"], elsewhere)
    assert "protoserve serve" in run([programs / "protoserve", "serve", "--help"], elsewhere)
    sample = run([programs / "python", "-c", SAMPLE], elsewhere).strip()
    assert Path(sample).is_relative_to(site)
    assert '"Ladybird"' in run([programs / "protoserve", "predict", "demo", sample, "--json"], elsewhere)


@ALL
def test_the_serving_install_needs_no_torch(wheel: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "environment")
    constraints = ROOT / "constraints.txt"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"]
    run([*pip, "--constraint", constraints, f"protoserve[serve] @ {wheel.as_uri()}"], tmp_path)
    sample = run([programs / "python", "-c", SAMPLE], tmp_path).strip()
    assert '"Ladybird"' in run([programs / "protoserve", "predict", "demo", sample, "--json"], tmp_path)
    with (
        running((str(programs / "protoserve"), "serve", "demo"), tmp_path) as server,
        urllib.request.urlopen(f"{server.address}/v1/samples/0", timeout=60) as answer,
    ):
        assert answer.read() == Path(sample).read_bytes()
    assert "protoserve serve" in run([programs / "protoserve", "serve", "--help"], tmp_path)
    missing = "import importlib.util; print(importlib.util.find_spec('torch'))"
    assert run([programs / "python", "-c", missing], tmp_path).strip() == "None"

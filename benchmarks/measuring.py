"""Shared by all benchmarks: run commands, train runs, describe the machine, write results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from protoserve.bundle.folder import Bundle
from protoserve.files import read_yaml, write_text
from training.config import parse_config
from training.recipes import recipes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ROOT / "training" / "configs"


def protoserve(*arguments: str | Path) -> dict[str, Any]:
    """Run a protoserve command with `--json` and return its document."""
    command = [sys.executable, "-c", "from protoserve.cli.root import main; main()", *map(str, arguments), "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def trained_run(
    run: Path,
    config: Path,
    *,
    data: Path,
    weights: str,
    seed: int,
    head: str = "prototypes",
    settings: Iterable[str] = (),
    left_out: Iterable[str] = (),
) -> Path:
    """Train a run, or resume it; keep a finished one. Returns its folder.

    `settings` are KEY=VALUE; if a key occurs several times, the last value wins. Runs in the same parent folder share
    their features.
    """
    if not (run / "model.pt").is_file():
        options: list[str | Path] = ["--data", data, "--weights", weights, "--run", run]
        options += ["--seed", str(seed), "--head", head]
        options += [word for setting in settings for word in ("--set", setting)]
        options += [word for leaf in left_out for word in ("--leave-out", leaf)]
        protoserve("train", config, *options, "--cache", run.parent / "cache", "--resume")
    return run


def training_of(bundle: Bundle) -> str:
    """How a bundle's run was trained: the recipe of its name, and where its settings are others."""
    config = bundle.manifest.provenance.config or {}
    name = str(config.get("name"))
    recipe = {found.name: found.file for found in recipes()}.get(name)
    if recipe is None:
        return f"the configuration {name}, which is no recipe of the package"
    own, of_recipe = (_flat(parse_config(content, name).model_dump()) for content in (config, read_yaml(recipe)))
    # Where the weights were read from says nothing about them.
    changed = {key: value for key, value in own.items() if value != of_recipe.get(key) and key != "model.weights"}
    if not changed:
        return f"the recipe {name}"
    return f"the recipe {name} with " + ", ".join(f"{key}={json.dumps(value)}" for key, value in changed.items())


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """All values of nested sections by their dotted keys."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def write_results(name: str, document: dict[str, Any], table: str) -> None:
    """Write `results/NAME.json` and its table `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", json.dumps(document, indent=1) + "\n")
    write_text(RESULTS / f"{name}.md", table)


def machine() -> dict[str, Any]:
    """The machine and the versions of packages, to be stored with the figures."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    versions = {}
    for package in ("torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "numpy", "pillow"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "processor": processor,
        "gpu": _gpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _gpu() -> str | None:
    """The name of the GPU that torch would use, or None."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def described(found: dict[str, Any]) -> str:
    """The result of `machine` as a sentence."""
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    processor = f"{found['gpu']}, {found['processor']}" if found.get("gpu") else found["processor"]
    return f"Machine: {processor}, {found['cores']} cores, Python {found['python']}, {versions}."


def described_rows(machines: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of Markdown that name the machine of every row of a table, with the rows if there are several machines."""
    rows: dict[str, list[str]] = {}
    for row, found in machines.items():
        rows.setdefault(described(found), []).append(row)
    return [
        line
        for sentence, names in rows.items()
        for line in ("", sentence if len(rows) == 1 else f"{sentence} Rows: {'; '.join(names)}.")
    ]

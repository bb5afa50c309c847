"""All measurements share this: running a command, describing the machine, writing results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from protoserve.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ROOT / "training" / "configs"


def protoserve(*arguments: str | Path) -> dict[str, Any]:
    """Run a command with `--json` and return its document."""
    command = [sys.executable, "-c", "from protoserve.cli.root import main; main()", *map(str, arguments), "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def write_results(name: str, document: dict[str, Any], table: str) -> None:
    """Write `results/NAME.json` and its table, `results/NAME.md`, each whole or not at all."""
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", json.dumps(document, indent=1) + "\n")
    write_text(RESULTS / f"{name}.md", table)


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures come from."""
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
    """The GPU that torch would use."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def described(found: dict[str, Any]) -> str:
    """The machine as a sentence."""
    versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    processor = f"{found['gpu']}, {found['processor']}" if found.get("gpu") else found["processor"]
    return f"Machine: {processor}, {found['cores']} cores, Python {found['python']}, {versions}."


def described_rows(machines: dict[str, dict[str, Any]]) -> list[str]:
    """The machine of every row of a table as lines of Markdown, the rows named where there are several machines."""
    rows: dict[str, list[str]] = {}
    for row, found in machines.items():
        rows.setdefault(described(found), []).append(row)
    return [
        line
        for sentence, names in rows.items()
        for line in ("", sentence if len(rows) == 1 else f"{sentence} Rows: {'; '.join(names)}.")
    ]

"""Grocery Store: prototypes beside a plain softmax, and the run beside its exported bundle. One command:

    python benchmarks/grocery.py --data DIR --weights FILE

Trains both heads on the same frozen backbone by the same code, exports the prototype run, scores everything on the
test split through the command line, and keeps the table in benchmarks/results/grocery.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIG = HERE.parent / "training" / "configs" / "grocery.yaml"


def protoserve(*arguments: str | Path) -> dict[str, Any]:
    """Run a command with `--json` and return its document."""
    command = [sys.executable, "-c", "from protoserve.cli import main; main()", *map(str, arguments), "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    packages = ("torch", "torchvision", "onnxruntime-gpu", "numpy", "pillow")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def measure(data: Path, weights: str, seed: int, runs: Path) -> dict[str, Any]:
    """Train, export and score for one seed."""
    results: dict[str, Any] = {}
    for head in ("linear", "prototypes"):
        run = runs / f"{head}-{seed}"
        common = ["--data", data, "--weights", weights, "--run", run, "--seed", str(seed), "--head", head]
        if not (run / "model.pt").is_file():
            protoserve("train", CONFIG, *common, "--resume")
        results[head] = json.loads((run / "metrics.json").read_text())
    run, bundle = runs / f"prototypes-{seed}", runs / f"bundle-{seed}"
    export = [
        "export",
        str(run),
        "--to",
        "onnx,torchscript",
        "--bundle",
        str(bundle),
        "--name",
        "grocery",
        "--overwrite",
    ]
    subprocess.run([sys.executable, "-c", "from protoserve.cli import main; main()", *export], check=True)
    results["evaluate"] = protoserve("evaluate", run, "--data", data, "--split", "test")
    results["validate"] = protoserve("validate", bundle, "--data", data, "--split", "test")
    results["parity"] = json.loads((bundle / "parity.json").read_text())
    return results


def table(results: dict[str, Any], seeds: list[int]) -> str:
    """The results as Markdown."""
    lines = [
        "# Grocery Store, frozen MobileNetV2",
        "",
        "Made by `python benchmarks/grocery.py --data DIR --weights FILE`; all figures in `grocery.json`. Test split,",
        "2,485 photographs, accuracy in %; prototypes after the final projection.",
        "",
        "| seed | head | leaf | level 2 | level 1 | leaf, macro | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in seeds:
        found = results[str(seed)]
        rows = {
            "plain softmax (`--head linear`)": (found["linear"]["test"], f"{found['linear']['seconds']:.0f}"),
            "prototypes, the run": (found["evaluate"], f"{found['prototypes']['seconds']:.0f}"),
            "prototypes, the exported bundle": (found["validate"], ""),
        }
        for name, (scores, seconds) in rows.items():
            accuracy = " | ".join(f"{100 * scores['accuracy'][level]:.2f}" for level in ("leaf", "level_2", "level_1"))
            lines.append(f"| {seed} | {name} | {accuracy} | {100 * scores['macro_accuracy']:.2f} | {seconds} |")
    found = results[str(seeds[0])]
    worst = {
        target: max(max(report[f"batch_{size}"]["worst_difference"].values()) for size in (1, 3, 8))
        for target, report in found["parity"].items()
    }
    lines += [
        "",
        "Parity with the network, worst absolute difference of any output over real pictures at batch 1, 3 and 8: "
        + ", ".join(f"{target} {value:.1e}" for target, value in worst.items())
        + ".",
        "",
    ]
    described = results["machine"]
    lines.append(
        f"Machine: {described['processor']}, {described['cores']} cores, Python {described['python']}, "
        + ", ".join(f"{package} {number}" for package, number in described["versions"].items())
        + "."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the grocery-store folder with train, val, test")
    parser.add_argument("--weights", default="DEFAULT", help="a MobileNetV2 state dict, or a torchvision name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, help="keep the runs here; finished ones are not trained again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        runs.mkdir(parents=True, exist_ok=True)
        results: dict[str, Any] = {"machine": machine()}
        for seed in options.seeds:
            results[str(seed)] = measure(options.data, options.weights, seed, runs)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "grocery.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results" / "grocery.md").write_text(table(results, options.seeds))
    print(table(results, options.seeds))


if __name__ == "__main__":
    main()

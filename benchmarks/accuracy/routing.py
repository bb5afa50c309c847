"""Measure how often a routed graph is certain on photographs, and whether its answers are right. One command:

    python -m benchmarks.accuracy.routing RUN [RUN ...] --data DIR

Takes finished hierarchical runs (those of `benchmarks/accuracy/comparison.py` with `--runs`), routes all levels but
the first, which real heads of this size would not need, and compares with the full head on the test split, in PyTorch.
Results in benchmarks/results/routing.{json,md}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.measuring import RESULTS, described_rows, machine
from protoserve.data.dataset import read_split
from protoserve.files import write_text
from protoserve.images.fitting import fit
from protoserve.networks.fused_head import explain
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.networks.routed_head import RoutedHead
from protoserve.run.folder import open_run

WIDTHS = (1, 2, 3, 5)
TOP_K, BATCH = 10, 32


def latents(network: PrototypeNetwork, pictures: Any, rule: Any) -> Iterator[Tensor]:
    """The latent maps of a split's pictures, batch by batch; decodes ahead."""
    with ThreadPoolExecutor(2) as pool:
        for start in track(range(0, len(pictures), BATCH), "photographs"):
            numbers = range(start, min(len(pictures), start + BATCH))
            arrays = np.stack([*pool.map(lambda number: fit(pictures.picture(number), rule).array, numbers)])
            yield network.latent(network.features(torch.from_numpy(arrays)))


@torch.inference_mode()
def measure(folder: Path, data: Path) -> dict[str, Any]:
    """The numbers of one run's test photographs that are certain and right, for each number of expanded nodes."""
    run = open_run(folder)
    network, description, _ = load_network(run.model)
    if not isinstance(network, PrototypeNetwork) or description.kind != "hierarchical":
        raise SystemExit(f"{folder}: only hierarchical runs can be routed, not one of kind {description.kind}")
    head = network.head
    pictures = read_split(data, "test", head.taxonomy)
    top_k = min(TOP_K, head.top_k_limit)
    routed = {width: RoutedHead(head, top_k, width, trunk=0) for width in WIDTHS}
    count, certain, same, evidence = 0, dict.fromkeys(WIDTHS, 0), dict.fromkeys(WIDTHS, 0), dict.fromkeys(WIDTHS, 0)
    for latent in latents(network, pictures, description.input):
        full = explain(head, latent, top_k)
        count += len(latent)
        for width, one in routed.items():
            found = one(latent)
            sure = found.certain
            paths = (found.path == full.path).all(1)
            certain[width] += int(sure.sum())
            same[width] += int((sure & paths).sum())
            shown = (found.evidence_prototype == full.evidence_prototype).flatten(1).all(1)
            evidence[width] += int((sure & paths & shown).sum())
    return {
        "run": folder.name,
        "prototypes": len(head.grouping.prototype_child),
        "groups": len(head.taxonomy.groups),
        "photographs": count,
        "certain": certain,
        "same_path": same,
        "same_evidence": evidence,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# How often a routed graph is certain",
        "",
        "Made by `python -m benchmarks.accuracy.routing RUN … --data DIR`; all figures in `routing.json`.",
        "",
        "All levels except the first are routed. *Certain*: no leaf that was not scored can win. *Same path* and "
        f"*same evidence*: the certain photographs with the path of the full head, and with its {TOP_K} prototypes in "
        "order at every level (equal contributions may be in another order).",
        "",
        "| run | photographs | nodes expanded | certain | same path | same evidence |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["runs"]:
        for width in WIDTHS:
            certain = row["certain"][str(width)]
            share = f"{certain} ({100 * certain / row['photographs']:.2f} %)"
            lines.append(
                f"| {row['run']} | {row['photographs']} | {width} | {share} | {row['same_path'][str(width)]} | "
                f"{row['same_evidence'][str(width)]} |"
            )
    return "\n".join([*lines, *described_rows({row["run"]: row["machine"] for row in results["runs"]})]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished hierarchical runs")
    parser.add_argument("--data", type=Path, required=True, help="their data set, with a folder test")
    parser.add_argument("--keep", action="store_true", help="keep the rows of other runs in the results")
    options = parser.parse_args()
    file, named = RESULTS / "routing.json", {run.name for run in options.runs}
    earlier = json.loads(file.read_text())["runs"] if options.keep and file.is_file() else []
    measured = [{**measure(run, options.data), "machine": machine()} for run in options.runs]
    # Convert keys to strings, as in a file.
    measured = json.loads(json.dumps(measured))
    results = {"runs": [*measured, *(row for row in earlier if row["run"] not in named)]}
    RESULTS.mkdir(exist_ok=True)
    write_text(file, json.dumps(results, indent=1) + "\n")
    write_text(file.with_suffix(".md"), table(results))
    print(table(results))


if __name__ == "__main__":
    main()

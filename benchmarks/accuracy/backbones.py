"""Train the recipe for Grocery Store on frozen backbones of torchvision and timm. One command:

    python -m benchmarks.accuracy.backbones --data grocery-store --work DIR \\
        --weights mobilenet_v2=mobilenet_v2_imagenet.pth --weights timm/tf_efficientnet_lite0=lite0.safetensors

`benchmarks.accuracy.efficientnet_lite` makes the latter file. Every backbone is trained once, with seed 0, and keeps
its finished run in DIR. Writes benchmarks/results/backbones.{json,md}.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.measuring import CONFIGS, described, machine, trained_run, write_results
from protoserve.run.folder import open_run

SEED = 0
RECIPE_BACKBONE = "mobilenet_v2"


def row(name: str, weights: str, data: Path, work: Path) -> dict[str, Any]:
    """Train a backbone and return its test scores and what its weights expect of pictures."""
    run = trained_run(
        work / name.replace("/", "-"),
        CONFIGS / "grocery.yaml",
        data=data,
        weights=weights,
        seed=SEED,
        # Only the recipe's own backbone has the part that its trunk ends at.
        settings=() if name == RECIPE_BACKBONE else (f"model.backbone={name}", "finetune.train_from=null"),
    )
    opened = open_run(run)
    test, backbone = opened.metrics().test, opened.provenance().backbone
    assert test is not None
    return {
        "test": dict(test.accuracy),
        "mistake_severity": test.mistake_severity,
        "backbone": None if backbone is None else backbone.model_dump(),
    }


def main() -> None:
    """Train the backbones and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--weights", action="append", required=True, metavar="NAME=FILE", help="a backbone; repeat")
    given = parser.parse_args()
    pairs = [pair.partition("=")[::2] for pair in given.weights]
    rows = {name: row(name, file, given.data, given.work) for name, file in pairs}
    found = machine()
    lines = [
        f"Grocery Store, the recipe `grocery` with a frozen backbone, seed {SEED}: test accuracy in %, and how far "
        "mistakes are from the truth in the class tree.",
        "",
        "| backbone | leaf (81) | level 2 (43) | level 1 (3) | mistake severity |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {100 * one['test']['leaf']:.2f} | {100 * one['test']['level_2']:.2f} | "
            f"{100 * one['test']['level_1']:.2f} | {one['mistake_severity']:.2f} |"
            for name, one in rows.items()
        ),
        "",
        described(found),
    ]
    write_results("backbones", {"machine": found, "seed": SEED, "backbones": rows}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

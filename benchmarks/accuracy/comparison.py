"""Compare a plain classifier, ProtoPNet and the hierarchical network, frozen and fine-tuned. One command:

    python -m benchmarks.accuracy.comparison grocery --data DIR --weights FILE --runs RUNS

Other names are `hpnet15`, and `similarities` for the hierarchical network with each form of the similarity on Grocery
Store.

All settings are fixed in training/configs and were chosen on images outside test (see docs/results.md). The command
trains every system with each seed, scores test once per run, and writes the means and standard deviations to
benchmarks/results/NAME.{json,md}. Below RUNS, it keeps finished runs and resumes unfinished ones. `--systems` and
`--seeds` restrict what is measured; with `--keep`, the other results stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import CONFIGS, RESULTS, described, machine, protoserve, trained_run
from protoserve.files import write_text

NOTES = {
    "grocery": "Grocery Store (Klasson et al. 2019), MobileNetV2; test split, 2,485 photographs.",
    "similarities": "The frozen hierarchical network of `grocery` with each form of the similarity, all else equal.",
    "hpnet15": "The 15 ImageNet classes of Hase et al. 2019, MobileNetV2; test split, 352 photographs. Published for "
    "the hierarchical network with VGG-16: leaf 81.87, level 1 93.60. The pictures overlap the training data of the "
    "backbone's weights, so all figures are too high; compare the rows only with each other.",
}
COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "leaf": lambda run: 100 * run["test"]["accuracy"]["leaf"],
    "level 2": lambda run: 100 * run["test"]["accuracy"]["level_2"],
    "level 1": lambda run: 100 * run["test"]["accuracy"]["level_1"],
    "macro": lambda run: 100 * run["test"]["macro_accuracy"],
    "distance": lambda run: run["test"]["hierarchical_distance"],
    "severity": lambda run: run["test"]["mistake_severity"],
    "ECE leaf": lambda run: 100 * run["test"]["expected_calibration_error"]["leaf"],
    "ECE level 1": lambda run: 100 * run["test"]["expected_calibration_error"]["level_1"],
    "projection": lambda run: 100 * run["cost"] if "cost" in run else None,
    "prototypes": lambda run: run["prototypes"] or None,
    "training, s": lambda run: round(run["seconds"]),
}


# The settings that turn the recipe into ProtoPNet: one softmax over all leaves, the paper's similarity and its number
# of prototypes. A single projection, at the end, costs it nothing. Its teacher stays softened: that makes the sums over
# leaves too soft for upper levels, but a flat network does not learn from such sums.
PROTOPNET = (
    "model.kind=flat",
    "model.similarity=log-ratio",
    "model.prototypes_per_child=10",
    "joint.project_every=0",
    "loss.distillation_temperature=2",
)
# The settings of the frozen configurations for inner nodes, and the longer training for them, do not help a flat
# network.
FROZEN_PROTOPNET = (*PROTOPNET, "joint.epochs=6", "start.share=1", "loss.leaf=0")


@dataclass(frozen=True)
class System:
    """One row of the table, and how to train a run of it."""

    name: str
    label: str
    config: str
    head: str = "prototypes"
    settings: tuple[str, ...] = ()
    plain: System | None = None


def systems(name: str) -> list[System]:
    """The rows, in the order in which they are trained.

    Fine-tuned prototypes start from the backbone of the plain row with the same seed. Their configuration would train
    the same backbone first, so it is trained only once.
    """
    if name == "similarities":
        return [
            System("frozen-hierarchical", "log(1 + 1/(d + ε)), Hase et al. 2019", "grocery.yaml"),
            *(
                System(f"similarity-{form}", label, "grocery.yaml", settings=(f"model.similarity={form}",))
                for form, label in (
                    ("log-ratio", "log((d + 1)/(d + ε)), Chen et al. 2019"),
                    ("cosine", "cosine, 1 − d/2"),
                )
            ),
        ]
    frozen, tuned = f"{name}.yaml", f"{name}-finetuned.yaml"
    plain = System("tuned-plain", "fine-tuned: plain softmax", tuned, "linear")
    trained = ("finetune.epochs=0",)
    return [
        System("frozen-plain", "frozen: plain softmax", frozen, "linear"),
        System("frozen-protopnet", "frozen: ProtoPNet", frozen, settings=FROZEN_PROTOPNET),
        System("frozen-hierarchical", "frozen: hierarchical prototypes", frozen),
        plain,
        System("tuned-protopnet", "fine-tuned: ProtoPNet", tuned, settings=(*PROTOPNET, *trained), plain=plain),
        System("tuned-hierarchical", "fine-tuned: hierarchical prototypes", tuned, settings=trained, plain=plain),
    ]


def measure(system: System, seed: int, data: Path, weights: str, runs: Path) -> dict[str, Any]:
    """Train one system with one seed, or take its finished run, and return its figures."""
    run = runs / f"{system.name}-{seed}"
    earlier = 0.0
    if system.plain is not None:
        earlier = measure(system.plain, seed, data, weights, runs)["seconds"]
        weights = str(runs / f"{system.plain.name}-{seed}")
    config = CONFIGS / system.config
    trained_run(run, config, data=data, weights=weights, seed=seed, head=system.head, settings=system.settings)
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    figures = {"test": metrics["test"], "selection": metrics["selection"], "seconds": earlier + metrics["seconds"]}
    for fact in ("projection", "anchored", "last_layers", "calibration"):
        if fact in metrics:
            figures[fact] = metrics[fact]
    if "projection" in metrics:
        # The cost includes the training after the projection, but not calibration, which does not move prototypes.
        last = next(metrics[fact] for fact in ("last_layers", "anchored", "projection") if fact in metrics)
        figures["cost"] = metrics["projection"]["before"]["selection_leaf"] - last["after"]["selection_leaf"]
    figures["prototypes"] = len([*(run / "prototypes").glob("*.webp")])
    return figures


def export(system: System, seed: int, data: Path, runs: Path) -> dict[str, Any]:
    """Export a run; return the scores of the bundle on test and its parity with the network."""
    run, bundle = runs / f"{system.name}-{seed}", runs / f"bundle-{system.name}-{seed}"
    if not bundle.is_dir():
        command = ["export", str(run), "--to", "onnx,torchscript", "--bundle", str(bundle)]
        subprocess.run([sys.executable, "-c", "from protoserve.cli.root import main; main()", *command], check=True)
    return {
        "validate": protoserve("validate", bundle, "--data", data, "--split", "test"),
        "parity": json.loads((bundle / "parity.json").read_text()),
    }


def cell(values: list[float | None]) -> str:
    """Mean ± sample standard deviation."""
    if any(value is None for value in values):
        return ""
    numbers = np.array(values, dtype=np.float64)
    digits = 0 if numbers.mean() >= 150 or (numbers == numbers.round()).all() else 2
    if len(numbers) == 1 or np.ptp(numbers) == 0:
        return f"{numbers[0]:.{digits}f}"
    return f"{numbers.mean():.{digits}f} ± {numbers.std(ddof=1):.{digits}f}"


def described_seeds(seeds: list[int]) -> str:
    """A sentence that says which seeds the cells average over."""
    if len(seeds) == 1:
        return f"One seed ({seeds[0]})."
    return f"Mean ± sample standard deviation of {len(seeds)} seeds ({', '.join(map(str, seeds))})."


def kept(earlier: dict[str, Any], rows: list[System], seeds: list[int]) -> list[str]:
    """The rows, and the seeds of measured rows, whose earlier results stay."""
    measured, staying = {row.name for row in rows}, []
    for name, runs in earlier.items():
        if name not in measured:
            staying.append(name)
        elif others := [seed for seed in runs if int(seed) not in seeds]:
            staying.append(f"{name} (seeds {', '.join(others)})")
    return staying


def table(name: str, results: dict[str, Any], seeds: list[int]) -> str:
    """The results as Markdown."""
    lines = [
        f"# {name}" + ("" if name == "similarities" else ": plain, ProtoPNet, hierarchical"),
        "",
        f"Made by `python -m benchmarks.accuracy.comparison {name} --data DIR --weights FILE`; all figures in "
        f"`{name}.json`.",
        NOTES[name],
        "",
        f"{described_seeds(seeds)} Accuracy in %; "
        "*macro*: mean recall of the leaves; *distance* and *severity*: levels from the true leaf up to the lowest "
        "common ancestor, over all images and over the mistakes; ECE in %, after calibration; *projection*: points of "
        "leaf accuracy lost from before the last projection to after the training that follows it, on the selection "
        "images.",
        "",
        f"| | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for system in systems(name):
        if system.name not in results["systems"]:
            continue
        runs = [results["systems"][system.name][str(seed)] for seed in seeds]
        cells = [cell([figure(run) for run in runs]) for figure in COLUMNS.values()]
        lines.append(f"| {system.label} | {' | '.join(cells)} |")
    if results["kept"]:
        lines += [
            "",
            f"Kept from an earlier run of this command, with unchanged settings: {', '.join(results['kept'])}.",
        ]
    lines += ["", "Leaf accuracy on test of a run and of its exported bundle, and the worst difference of any output:"]
    for system, found in results["bundles"].items():
        run = results["systems"][system][str(seeds[0])]
        worst = {
            target: max(max(report[f"batch_{size}"]["worst_difference"].values()) for size in (1, 3, 8))
            for target, report in found["parity"].items()
        }
        shown = ", ".join(f"{target} {value:.1e}" for target, value in worst.items())
        accuracy = (100 * run["test"]["accuracy"]["leaf"], 100 * found["validate"]["accuracy"]["leaf"])
        lines.append(f"- {system}, seed {seeds[0]}: {accuracy[0]:.2f} and {accuracy[1]:.2f}; {shown}")
    return "\n".join([*lines, "", described(results["machine"])]) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(NOTES))
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder, with train and test")
    parser.add_argument("--weights", default="DEFAULT", help="a MobileNetV2 state dict, or a torchvision name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", help="measure only rows whose names start with these, such as frozen")
    parser.add_argument("--runs", type=Path, help="keep the runs here; finished ones are not trained again")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the results of other rows and seeds; correct only if their settings have not changed",
    )
    options = parser.parse_args()
    file = RESULTS / f"{options.name}.json"
    earlier = json.loads(file.read_text()) if options.keep and file.is_file() else {"systems": {}, "bundles": {}}
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        runs.mkdir(parents=True, exist_ok=True)
        wanted = tuple(options.systems or [""])
        rows = [row for row in systems(options.name) if row.name.startswith(wanted)]
        results: dict[str, Any] = {
            **earlier,
            "machine": machine(),
            "kept": kept(earlier["systems"], rows, options.seeds),
        }
        for seed in options.seeds:
            for row in rows:
                found = measure(row, seed, options.data, options.weights, runs)
                results["systems"].setdefault(row.name, {})[str(seed)] = found
        seeds = sorted(set.intersection(*(set(map(int, row)) for row in results["systems"].values())))
        for row in rows:
            if row.head == "prototypes" and seeds[0] in options.seeds:
                results["bundles"][row.name] = export(row, seeds[0], options.data, runs)
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps(results, indent=1) + "\n")
    text = table(options.name, results, seeds)
    write_text(file.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()

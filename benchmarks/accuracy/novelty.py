"""Measure how well a network detects classes of Grocery Store that were left out of training. One command:

    python -m benchmarks.accuracy.novelty --data DIR --weights FILE

Trains without the leaves below, by the configuration of the frozen benchmark, and evaluates known and left-out classes
of the test split. Writes benchmarks/results/novelty.{json,md}. `--candidates` makes the runs from which the leaves and
the default score were chosen: they leave out more leaves and use only photographs of train and val. It writes
novelty-candidates.{json,md}.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import CONFIGS, described, machine, protoserve, trained_run, write_results

CONFIG = CONFIGS / "grocery.yaml"

# The candidates below that the default score separates from their siblings on photographs of train and val
# (`--candidates`, AUROC of at least 0.85), with the right node at level 1 for at least 90 %.
LEAVES = (
    "Packages/Milk/Arla-Ecological-Medium-Fat-Milk",
    "Vegetables/Pepper/Orange-Bell-Pepper",
    "Vegetables/Potato/Sweet-Potato",
)
# The leaves and the default score were chosen from these, in two runs, so that each run keeps most siblings.
CANDIDATES = (
    (
        "Fruit/Apple/Pink-Lady",
        "Fruit/Banana",
        "Fruit/Melon/Galia-Melon",
        "Fruit/Pear/Conference",
        "Packages/Juice/God-Morgon-Apple-Juice",
        "Packages/Milk/Garant-Ecological-Medium-Fat-Milk",
        "Packages/Yoghurt/Valio-Vanilla-Yoghurt",
        "Vegetables/Aubergine",
        "Vegetables/Pepper/Orange-Bell-Pepper",
        "Vegetables/Tomato/Vine-Tomato",
    ),
    (
        "Fruit/Apple/Granny-Smith",
        "Fruit/Melon/Watermelon",
        "Fruit/Pear/Anjou",
        "Packages/Juice/Tropicana-Golden-Grapefruit",
        "Packages/Milk/Arla-Ecological-Medium-Fat-Milk",
        "Packages/Yoghurt/Yoggi-Strawberry-Yoghurt",
        "Vegetables/Pepper/Yellow-Bell-Pepper",
        "Vegetables/Potato/Sweet-Potato",
        "Vegetables/Tomato/Beef-Tomato",
    ),
)


def measure(
    leaves: tuple[str, ...], config: Path, finetune: Path | None, data: Path, weights: str, seed: int, run: Path
) -> Path:
    """Train a run without the leaves and return it.

    With `finetune`, the configuration of a plain classifier, it starts from the backbone of such a classifier, which is
    trained without the leaves, too.
    """
    if finetune is not None:
        plain = run.with_name(f"{run.name}-plain")
        trained_run(plain, finetune, data=data, weights=weights, seed=seed, head="linear", left_out=leaves)
        weights = str(plain)
    return trained_run(run, config, data=data, weights=weights, seed=seed, left_out=leaves)


def table(leaves: tuple[str, ...], novel: dict[str, Any]) -> list[str]:
    """One evaluation as lines of Markdown."""
    scores = list(next(iter(novel["parents"].values()))["scores"])
    lines = [
        f"| left out | novel | known siblings | {' | '.join(scores)} | rejected by the threshold | right level 1 |",
        "|---" * (5 + len(scores)) + "|",
    ]
    for parent, found in novel["parents"].items():
        names = ", ".join(leaf.rpartition("/")[2] for leaf in leaves if leaf.rpartition("/")[0] == parent)
        # There is no AUROC without images of known siblings, and no threshold without selection images of them.
        cells = [
            "–" if one["auroc"] is None else f"{one['auroc']:.3f} / {one['fpr95']:.2f}"
            for one in (found["scores"][name] for name in scores)
        ]
        rejected = "no threshold"
        if "rejected" in found:
            known = found["falsely_rejected"]
            rejected = f"{100 * found['rejected']:.0f} %"
            rejected += "" if known is None else f" (of the known {100 * known:.0f} %)"
        counts = f"{found['novel_images']} | {found['known_images']}"
        top = f"{100 * found['right_level_1']:.0f} %"
        lines.append(f"| {parent}: {names} | {counts} | {' | '.join(cells)} | {rejected} | {top} |")
    return [
        *lines,
        "",
        f"{100 * novel['right_level_1']:.1f} % of the {novel['images']} novel photographs get the right node at level "
        f"1. By the run's thresholds, {100 * novel['detected']:.1f} % of them are not accepted as known below their "
        f"deepest known node, and {100 * novel['known_throughout']:.1f} % of the known photographs are accepted down "
        "to the leaf.",
    ]


def summary(evaluations: list[dict[str, Any]]) -> list[str]:
    """The mean and the least AUROC of every score over all seeds, per parent."""
    novel = [evaluation["novel"] for evaluation in evaluations]
    right = [100 * one["right_level_1"] for one in novel]
    lines = [
        f"## All {len(novel)} seeds",
        "",
        f"Right node at level 1: {statistics.mean(right):.1f} % on average, {min(right):.1f} % at least. AUROC, mean "
        "and minimum:",
        "",
    ]
    first = novel[0]["parents"]
    scores = list(next(iter(first.values()))["scores"])
    lines += [f"| parent | {' | '.join(scores)} |", "|---" * (1 + len(scores)) + "|"]
    for parent in first:
        cells = []
        for score in scores:
            found = [one["parents"][parent]["scores"][score]["auroc"] for one in novel]
            cells.append(f"{statistics.mean(found):.3f}, {min(found):.3f}" if None not in found else "–")
        lines.append(f"| {parent} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the grocery-store folder with train, val, test")
    parser.add_argument("--weights", default="DEFAULT", help="a MobileNetV2 state dict, or a torchvision name")
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIG,
        help="by default that of the frozen benchmark; the results of another get its name",
    )
    parser.add_argument("--finetune", type=Path, help="fine-tune the backbone first, by this configuration")
    parser.add_argument(
        "--candidates", action="store_true", help="leave out the candidates; use only photographs of train and val"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, help="keep the runs here; finished ones are not trained again")
    options = parser.parse_args()
    name = "novelty-candidates" if options.candidates else "novelty"
    chosen = " --candidates" if options.candidates else ""
    if options.config.stem != CONFIG.stem:
        name = f"{name}-{options.config.stem}"
        chosen += f" --config training/configs/{options.config.name}"
    split, novel = ("val", options.data / "train") if options.candidates else ("test", options.data)
    results: dict[str, Any] = {"machine": machine(), "config": options.config.name, "evaluations": []}
    lines = [
        "# Grocery Store with left-out classes",
        "",
        f"Made by `python -m benchmarks.accuracy.novelty --data DIR --weights FILE{chosen}`; all "
        f"figures in `{name}.json`. A run that has never seen the left-out class separates its photographs from those "
        f"of the known siblings ({'val; the novel ones of train' if options.candidates else 'test'}). Cells: AUROC / "
        "share of novel photographs that pass a threshold that 95 % of the known ones pass.",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        runs.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for number, leaves in enumerate(CANDIDATES if options.candidates else (LEAVES,)):
                where = options.data, options.weights, seed, runs / f"{name}-{number}-{seed}"
                run = measure(leaves, options.config, options.finetune, *where)
                found = protoserve("evaluate", run, "--data", options.data, "--split", split, "--novel", novel)
                results["evaluations"].append({"seed": seed, "left_out": leaves, **found})
                lines += ["", f"## Seed {seed}, {len(leaves)} leaves left out", "", *table(leaves, found["novel"])]
    if len(options.seeds) > 1 and not options.candidates:
        lines += ["", *summary(results["evaluations"])]
    text = "\n".join([*lines, "", described(results["machine"])]) + "\n"
    write_results(name, results, text)
    print(text)


if __name__ == "__main__":
    main()

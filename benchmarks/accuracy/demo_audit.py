"""How true the evidence of the demo is, on all of its test pictures.

Run it after `make demo`: `python -m benchmarks.accuracy.demo_audit demo`. Writes results/demo-audit.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measuring import described, machine, protoserve, write_results
from training.rendered import render_interventions


def main() -> None:
    """Audit the demo's bundle and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the folder of `make demo`")
    demo = parser.parse_args().demo
    render_interventions(demo / "data")
    # Above the number of test pictures.
    options = ("--data", demo / "data", "--quick", "--images", "100000")
    card = protoserve("audit", demo / "bundle", *options)
    scores = json.loads((demo / "run" / "metrics.json").read_text(encoding="utf-8"))["test"]
    found = machine()
    text = table(card, scores["accuracy"], described(found))
    write_results("demo-audit", {"machine": found, "accuracy": scores["accuracy"], "card": card}, text)
    sys.stdout.write(text)


def table(card: dict[str, Any], accuracy: dict[str, float], machine_sentence: str) -> str:
    """The figures as Markdown."""
    right = ", ".join(f"{level.replace('_', ' ')} {share:.1%}" for level, share in accuracy.items())
    parts = [
        f"| {hits['level']} | {hits['part']} | {interval(hits['first']['measured'])} | "
        f"{interval(hits['first_three']['measured'])} | {hits['first']['baseline']['mean']:.2f} |"
        for hits in card["parts"]
    ]
    local = [
        f"| {found['level']} | {found['replacement']} | {change['measured']['mean']:.2f} % | "
        f"{change['baseline']['mean']:.1f} % |"
        for found in card["locality"]
        if (change := found["activation_change"]) is not None
    ]
    sparse = [
        f"| {found['level']} | {found['telling']['measured']['mean']:.2f} | "
        f"{found['always_on']['measured']['mean']:.2f} |"
        for found in card["sparsity"]
    ]
    left_out = [
        f"| {found['level']} | "
        + " | ".join(beside(found[name]) for name in ("complete", "undistracted", "correct", "contrastive"))
        + " |"
        for found in card["part_effects"]
    ]
    backgrounds = [
        f"| {found['level']} | {found['background']} | {beside(found['answers'])} | {beside(found['first'])} |"
        for found in card["backgrounds"]
    ]
    kept = {found["level"]: found for found in card["consistency"]}
    pure = [
        f"| {found['level']} | {found['pure']:.2f} ({found['shuffled']:.2f}) | {other['consistent']:.2f} "
        f"({other['shuffled']:.2f}) |"
        for found in card["purity"]
        if (other := kept.get(found["level"])) is not None
    ]
    lines = [
        "# The evidence of the demo",
        "",
        f"`make demo`, then `python -m benchmarks.accuracy.demo_audit demo`: {card['images']} test pictures, which no "
        f"choice has seen. Right: {right}. 95 % intervals over the pictures; [docs/audit.md](../../docs/audit.md) "
        "defines every figure.",
        "",
        machine_sentence,
        "",
        "Share of evidence with its box's centre on the part:",
        "",
        "| level | part | first | first three | chance |",
        "|---|---|---|---|---|",
        *parts,
        "",
        "Change of the similarity when the pixels outside the box are replaced, beside inside:",
        "",
        "| level | replaced by | outside | inside |",
        "|---|---|---|---|",
        *local,
        "",
        "First evidence from prototypes that tell their class from its siblings, and from those that are always on:",
        "",
        "| level | telling | always on |",
        "|---|---|---|",
        *sparse,
        "",
        "Pictures drawn again without each part (FunnyBirds). In brackets: the same with contributions spread evenly "
        "over the picture, and one half for contrastive:",
        "",
        "| level | complete | not distracted | correct | contrastive |",
        "|---|---|---|---|---|",
        *left_out,
        "",
        "Share that stays on another background, drawn anew or swapped. In brackets: with another object on the same "
        "background:",
        "",
        "| level | background | answers | first evidence |",
        "|---|---|---|---|",
        *backgrounds,
        "",
        "Prototypes. In brackets: with shuffled places:",
        "",
        "| level | most similar patches with the same part | prototypes that keep to one part |",
        "|---|---|---|",
        *pure,
    ]
    return "\n".join(lines) + "\n"


def beside(figure: dict[str, Any] | None) -> str:
    """A figure with its interval, and its baseline in brackets."""
    return "–" if figure is None else f"{interval(figure['measured'])} ({figure['baseline']['mean']:.2f})"


def interval(estimate: dict[str, float]) -> str:
    """A mean with its interval."""
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


if __name__ == "__main__":
    main()

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


def main() -> None:
    """Audit the demo's bundle and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="the folder of `make demo`")
    demo = parser.parse_args().demo
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
    ]
    return "\n".join(lines) + "\n"


def interval(estimate: dict[str, float]) -> str:
    """A mean with its interval."""
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


if __name__ == "__main__":
    main()

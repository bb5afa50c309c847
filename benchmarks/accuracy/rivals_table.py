"""The tables of benchmarks/accuracy/rivals.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from benchmarks.measuring import described
from protoserve.audit.checks import FEWEST_IMAGES

OURS: Final = "ours"


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown; a verdict stands beside every comparison, whichever way it goes."""
    lines = [
        "# Our evidence beside explanations of a plain classifier",
        "",
        "`make bench-audit SETS='NAME=BUNDLE=LINEAR_RUN=DATA …'`. Grad-CAM, LayerCAM, integrated gradients, LIME and "
        "KernelSHAP explain a softmax classifier on the same backbone; *of our graph*: the bundle's graph. The "
        "functions of `protoserve audit` measure all of them on the same test pictures. "
        "[docs/audit.md](../../docs/audit.md) defines the figures and says how an attribution becomes boxes; at every "
        "step all methods cover exactly the same area. 95 % intervals over the pictures.",
        "",
        "*Area*: the mean effect of 1 to 10 boxes, in nats of the log-probability of the node that the method's own "
        "model predicts; *random*: of shifted boxes; *of the whole*: the area as a share of the effect of filling the "
        "whole picture. *Less* means that ours is worse beyond chance, *more* that it is better; without a word, "
        "these pictures do not tell.",
        "",
        described(results["machine"]),
    ]
    for name, found in results["sets"].items():
        lines += ["", f"## {name}", "", _models(found), *_parts(found)]
        for mode, meaning in (
            ("necessity", "what the node loses when the boxes are filled with the picture's mean colour"),
            ("sufficiency", "what the node gains when only the boxes are kept"),
        ):
            lines += ["", f"**{mode.capitalize()}**: {meaning}.", "", *_effects(found, mode)]
        lines += ["", *_other_fills(found), "", *_costs(found, results["threads"])]
    return "\n".join(lines) + "\n"


def _models(found: dict[str, Any]) -> str:
    shares = {name: " / ".join(f"{share:.1%}" for share in by_level) for name, by_level in found["accuracy"].items()}
    return (
        f"{found['backbone']}, {found['images']} test pictures. Right on them, by level: our graph "
        f"{shares['ours']}, the plain classifier {shares['plain']}."
    )


def _parts(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        f"| {hit['level']} | {hit['part']} | {name} | {hit['first']['measured']['images']} | "
        f"{interval(hit['first']['measured'])} | {interval(hit['first_three']['measured'])} | "
        f"{hit['first']['baseline']['mean']:.2f} | {_shares(own)} |"
        for name, method in found["methods"].items()
        for hit, own in zip(method["parts"], method["our_parts"], strict=True)
    ]
    if rows:
        yield from (
            "",
            "**Parts**: share of boxes with their centre on the object, and on a decisive part; *ours here*: ours on "
            "the same pictures.",
            "",
        )
        yield from (
            "| level | part | method | pictures | first | first three | chance | ours here |",
            "|---|---|---|---|---|---|---|---|",
        )
        yield from sorted(rows, key=lambda row: row.split("|")[1:3])


def _shares(hit: dict[str, Any]) -> str:
    return f"{hit['first']['measured']['mean']:.2f}, {hit['first_three']['measured']['mean']:.2f}"


def _effects(found: dict[str, Any], mode: str) -> Iterator[str]:
    yield (
        "| level | method | pictures | first box | area | random | of the whole | ours less it: first box | area | "
        "area over random |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for level in found["levels"]:
        for name, row in _rows(found, mode, level, "mean"):
            differences = ["", "", ""]
            if name != OURS:
                differences = [verdict(row[key]["difference"]) for key in ("ours_first", "ours", "ours_over_random")]
            yield (
                f"| {level} | {name} | {row['images']} | {row['first']['measured']['mean']:.2f} | "
                f"{interval(row['over_random']['measured'])} | {row['over_random']['baseline']['mean']:.2f} | "
                f"{row['share_of_whole']:.0%} | {' | '.join(differences)} |"
            )


def _other_fills(found: dict[str, Any]) -> Iterator[str]:
    yield (
        "The other fillings: our area less that of each method, in nats, at levels "
        + " / ".join(map(str, found["levels"]))
        + "."
    )
    yield from ("", "| figure | filled by | method | difference |", "|---|---|---|---|")
    for mode in ("necessity", "sufficiency"):
        for fill in ("blur", "swap"):
            for name in found["methods"]:
                if name != OURS:
                    cells = [
                        verdict(row["ours"]["difference"])
                        for level in found["levels"]
                        for other, row in _rows(found, mode, level, fill)
                        if other == name
                    ]
                    yield f"| {mode} | {fill} | {name} | {' / '.join(cells)} |"


def _costs(found: dict[str, Any], threads: int) -> Iterator[str]:
    times = found["milliseconds"]
    yield (
        f"**Cost** of an explained prediction, {threads} threads, one picture, in turns: ours in onnxruntime, with the "
        "evidence of all levels; the others in PyTorch, one node."
    )
    yield from ("", "| | ms | times ours |", "|---|---|---|")
    for name, milliseconds in times.items():
        base = times["ours, beside LIME and KernelSHAP" if name in ("LIME", "KernelSHAP") else OURS]
        yield f"| {name} | {milliseconds:,.1f} | {milliseconds / base:,.1f} |"


def _rows(found: dict[str, Any], mode: str, level: int, fill: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, method in found["methods"].items():
        for row in method["effects"]:
            if (row["mode"], row["level"], row["fill"]) == (mode, level, fill):
                yield name, row


def interval(estimate: dict[str, float]) -> str:
    """A mean with its interval."""
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def verdict(difference: dict[str, float]) -> str:
    """A difference with its interval: **more** or **less** where it is beyond 0, if there are enough pictures to say.

    >>> verdict({"mean": -0.5, "low": -0.75, "high": -0.25, "images": 40})
    '-0.50 [-0.75, -0.25] **less**'
    """
    if difference["images"] < FEWEST_IMAGES:
        return interval(difference)
    word = " **more**" if difference["low"] > 0 else " **less**" if difference["high"] < 0 else ""
    return f"{interval(difference)}{word}"

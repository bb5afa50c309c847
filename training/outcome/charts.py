"""Figures of a run by matplotlib: as PNG files in the run's folder, and as SVG that takes its ink from the page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours in an order in which neighbours differ, legible on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Stands for the page's own colour of text, which matplotlib has no name for.
_INK = "#010203"
_MARKS = {"": "o", "duplicates": "s", "purity": "D", "contribution": "o"}
_RULES = {"duplicates": "near-duplicates merged", "purity": "impure ones pruned"}


def as_png(draw: Callable[[], Figure]) -> bytes:
    """The figure that `draw` makes, black on white."""
    buffer = io.BytesIO()
    draw().savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def as_svg(draw: Callable[[], Figure], name: str, description: str) -> str:
    """The figure that `draw` makes, as an SVG element to stand in a page: transparent, its ink `currentColor`, text as
    text. `name` keeps its identifiers apart from those of other figures; `description` is read out instead of it.
    """
    import matplotlib

    with matplotlib.rc_context(
        {
            "text.color": _INK,
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "grid.color": _INK,
            "svg.fonttype": "none",
            "svg.hashsalt": name,
        }
    ):
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # In a page the element has no need of namespaces, and the page sets its size.
    svg = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", svg, count=3).replace("xlink:href", "href")
    svg = re.sub(r'<svg( width="[^"]*"| height="[^"]*")*', "<svg", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="(figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend)_\d+"', "", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def losses_figure(history: Sequence[dict[str, Any]]) -> Figure:
    """The terms of the loss over the steps of a run's history."""
    terms = ("loss", "total", "cross_entropy", "cluster", "separation", "noise")
    return _over_steps(history, {term: term.replace("_", " ") for term in terms}, 1.0, "loss")


def selection_figure(history: Sequence[dict[str, Any]]) -> Figure:
    """Accuracies on the selection images over the steps."""
    return _over_steps(history, {"selection_leaf": "leaf", "selection_level_1": "level 1"}, 100.0, "accuracy, %")


def _over_steps(history: Sequence[dict[str, Any]], labels: dict[str, str], scale: float, name: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for colour, (term, label) in zip(COLOURS, labels.items(), strict=False):
        points = [(row["step"] + 1, scale * row[term]) for row in history if term in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", markersize=4, linewidth=1.3, label=label, color=colour)
    for row in history:
        if row["stage"] == "project":
            axes.axvline(row["step"] + 1, color="0.55", linewidth=0.8, linestyle=":", zorder=0)
    _dress(axes)
    axes.set(xlabel="step (dotted: projection)", ylabel=name)
    axes.legend(loc="best", frameon=False, fontsize=9)
    return figure


def counts_figure(counts: dict[str, Any]) -> Figure:
    """Accuracy against the number of prototypes, from the record of `training.stages.counting.count`: the marks say
    which rule took prototypes away, the band what is within the tolerance of the best, the ring what was picked."""
    from matplotlib.figure import Figure

    rounds, picked = counts["rounds"], counts["rounds"][counts["picked"]]
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    lines = (("selection_leaf", "leaf", COLOURS[0]), ("selection_level_1", "level 1", COLOURS[1]))
    for measure, label, colour in lines:
        points = [(row["prototypes"], 100 * row[measure]) for row in rounds]
        axes.plot(*zip(*points, strict=True), linewidth=1.3, color=colour, label=label)
        for row, (number, accuracy) in zip(rounds, points, strict=True):
            axes.plot(number, accuracy, marker=_MARKS[row["rule"]], markersize=4.5, color=colour)
    best = max(row["selection_leaf"] for row in rounds)
    axes.axhspan(100 * (best - counts["tolerance"]), 100 * best, color=COLOURS[0], alpha=0.15, linewidth=0)
    place = (picked["prototypes"], 100 * picked["selection_leaf"])
    axes.plot(*place, marker="o", markersize=13, fillstyle="none", color=COLOURS[4], markeredgewidth=2)
    axes.annotate(
        f"{place[0]} prototypes, {place[1]:.1f} %", place, xytext=(0, -24), textcoords="offset points", ha="center"
    )
    for rule, label in _RULES.items():
        if any(row["rule"] == rule for row in rounds):
            axes.plot([], [], marker=_MARKS[rule], linestyle="none", color="0.5", markersize=4.5, label=label)
    axes.set_xscale("log")
    ticks = sorted({rounds[0]["prototypes"], *(row["prototypes"] for row in rounds[::-3])})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    _dress(axes)
    axes.set(xlabel="prototypes", ylabel="accuracy on selection images, %")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def _dress(axes: Any) -> None:
    axes.grid(alpha=0.2, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)

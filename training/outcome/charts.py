"""Figures of a run by matplotlib: as PNG files in the run's folder, and as SVG that takes its ink from the page.

All text is drawn as it is: a class may be named `$_{2$`, which matplotlib would read as a formula.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protoserve.files import write_bytes
from protoserve.run.records import Counts, Rule, SelectionAccuracy
from protoserve.scores import BINS, calibration_scores, confidences, reliability
from protoserve.taxonomy import ROOT, Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

# The rows of `history.csv`, one per step: `step`, `stage` and `epoch`, and the figures that the stage reports.
History = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours in an order in which neighbours differ, legible on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# More curves than colours repeat these in another line style.
LINES = ("-", "--", ":")
# Labels of the curves; a term that is not listed is labelled by its name in the history.
LABELS = {
    "prototype_near_code": "R1, prototype near code",
    "code_near_prototype": "R2, code near prototype",
    "reconstruction": "R, reconstruction",
    "selection_leaf": "leaf",
    "selection_level_1": "level 1",
}
# The sums of the loss; the rows that hold one of them hold its terms.
SUMS = ("loss", "total")
# Figures in those rows that are not means over images: where a step stands, accuracies, and norms of the weights.
NOT_TERMS = ("step", "stage", "epoch", "l1", "l2", "selection_leaf", "selection_level_1")
# Below this size, losses are drawn on a linear scale, above it on a logarithmic one.
LINEAR = 0.1

# At most this many confusion matrices are drawn: those with the most mistakes.
MATRICES, COLUMNS = 24, 4
# Beyond so many children the counts, then the labels, of a confusion matrix are not legible.
NUMBERED, NAMED = 20, 60

# Stands for the page's own colour of text, which matplotlib has no name for.
_INK = "#010203"
_MARKS: dict[Rule, str] = {"": "o", "duplicates": "s", "purity": "D", "contribution": "o"}
_RULES: dict[Rule, str] = {"duplicates": "near-duplicates merged", "purity": "impure ones pruned"}


def write_figure(file: Path, draw: Callable[[], Figure], console: Console, *, dpi: int = 110) -> None:
    """Write the figure that `draw` makes as a PNG file, whole.

    A figure that can't be drawn costs no run: the console gets a warning with the file and the cause instead.
    """
    try:
        content = as_png(draw, dpi=dpi)
    # Whatever matplotlib fails with, hours of training must not be lost to it.
    except Exception as error:  # noqa: BLE001
        console.print(
            f"warning: {file}: can't draw this figure ({type(error).__name__}: {error}); the run goes on without it",
            markup=False,
            soft_wrap=True,
        )
        return
    write_bytes(file, content)


def as_png(draw: Callable[[], Figure], *, dpi: int = 110) -> bytes:
    """The figure that `draw` makes, black on white."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):
        draw().savefig(buffer, dpi=dpi, format="png")
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
            "text.parse_math": False,
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


# ---- curves ----------------------------------------------------------------------------------------------------------


def curves_figure(history: History, name: str) -> Figure:
    """Terms of the loss and accuracies on the selection images over the steps, one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_losses(upper, history)
    _draw_selection(lower, history)
    upper.set(xlabel="", title=f"{name}: training")
    return figure


def losses_figure(history: History) -> Figure:
    """Terms of the loss over the steps."""
    return _single(_draw_losses, history)


def selection_figure(history: History) -> Figure:
    """Accuracies on the selection images over the steps."""
    return _single(_draw_selection, history)


def loss_terms(history: History) -> list[str]:
    """The terms of the loss that a history holds, their sum included, in the order in which they first occur."""
    rows = (row for row in history if any(name in row for name in SUMS))
    return list(dict.fromkeys(name for row in rows for name in row if name not in NOT_TERMS))


def _single(draw: Callable[[Axes, History], None], history: History) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    draw(figure.subplots(), history)
    return figure


def _draw_losses(axes: Axes, history: History) -> None:
    from matplotlib.ticker import FuncFormatter

    _draw_over_steps(axes, history, loss_terms(history), 1.0)
    # The terms differ by orders of magnitude, and separation is negative.
    axes.set_yscale("symlog", linthresh=LINEAR)
    # The scale's own labels are formulas, which are not read as such here.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("loss, mean over an epoch")


def _draw_selection(axes: Axes, history: History) -> None:
    _draw_over_steps(axes, history, list(SelectionAccuracy.model_fields), 100.0)
    axes.set_ylabel("accuracy on selection images, %")


def _draw_over_steps(axes: Axes, history: History, names: Sequence[str], scale: float) -> None:
    for number, name in enumerate(names):
        points = [(row["step"] + 1, scale * row[name]) for row in history if name in row]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                marker=".",
                markersize=4,
                linewidth=1.3,
                label=LABELS.get(name, name.replace("_", " ")),
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number // len(COLOURS) % len(LINES)],
            )
    for row in history:
        if row["stage"] == "project":
            axes.axvline(row["step"] + 1, color="0.55", linewidth=0.8, linestyle=":", zorder=0)
    _dress(axes)
    projected = any(row["stage"] == "project" for row in history)
    axes.set_xlabel("step (dotted: projection)" if projected else "step")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


# ---- how many prototypes ---------------------------------------------------------------------------------------------


def counts_figure(counts: Counts) -> Figure:
    """Accuracy against the number of prototypes. Marks say which rule removed prototypes, the band which accuracies are
    within the tolerance of the best, the ring which round was picked."""
    from matplotlib.figure import Figure

    rounds, picked = counts.rounds, counts.rounds[counts.picked]
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(SelectionAccuracy.model_fields, COLOURS, strict=False):
        points = [(row.prototypes, 100 * getattr(row, name)) for row in rounds]
        axes.plot(*zip(*points, strict=True), linewidth=1.3, color=colour, label=LABELS[name])
        for row, (prototypes, accuracy) in zip(rounds, points, strict=True):
            axes.plot(prototypes, accuracy, marker=_MARKS[row.rule], markersize=4.5, color=colour)
    best = max(row.selection_leaf for row in rounds)
    axes.axhspan(100 * (best - counts.tolerance), 100 * best, color=COLOURS[0], alpha=0.15, linewidth=0)
    point = (picked.prototypes, 100 * picked.selection_leaf)
    axes.plot(*point, marker="o", markersize=13, fillstyle="none", color=COLOURS[4], markeredgewidth=2)
    axes.annotate(
        f"{point[0]} prototypes, {point[1]:.1f} %", point, xytext=(0, -24), textcoords="offset points", ha="center"
    )
    for rule, label in _RULES.items():
        if any(row.rule == rule for row in rounds):
            axes.plot([], [], marker=_MARKS[rule], linestyle="none", color="0.5", markersize=4.5, label=label)
    axes.set_xscale("log")
    ticks = sorted({rounds[0].prototypes, *(row.prototypes for row in rounds[::-3])})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    _dress(axes)
    axes.set(xlabel="prototypes", ylabel="accuracy on selection images, %")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


# ---- confusion and calibration ---------------------------------------------------------------------------------------


def confusion_figure(confusion: Mapping[str, NDArray[np.int64]], taxonomy: Taxonomy, name: str) -> Figure:
    """`protoserve.scores.sibling_confusion`, one matrix per parent: rows are true children, columns predicted ones,
    colours the share of a row. Parents with the most mistakes come first."""
    from matplotlib.figure import Figure

    mistakes = {parent: int(counts.sum() - np.trace(counts)) for parent, counts in confusion.items()}
    shown = sorted(confusion, key=lambda parent: (-mistakes[parent], parent))[:MATRICES]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, parent in zip(panels, shown, strict=False):
        node = taxonomy.index[parent] if parent else ROOT
        labels = [taxonomy.nodes[child][-1] for child in taxonomy.children_of(node)]
        title = f"{parent or 'the root'}: {mistakes[parent]} of {int(confusion[parent].sum())} mistaken"
        _draw_matrix(axes, confusion[parent], labels, title)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    more = f", the {MATRICES} of {len(confusion)} parents with the most mistakes" if len(confusion) > MATRICES else ""
    figure.suptitle(f"{name}: confusion between siblings{more}")
    return figure


def _draw_matrix(axes: Axes, counts: NDArray[np.int64], labels: Sequence[str], title: str) -> None:
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, vmin=0.0, vmax=1.0, cmap="Blues")
    axes.set_title(title, fontsize=9)
    size = max(4.0, min(8.0, 160.0 / len(labels)))
    if len(labels) <= NAMED:
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(len(labels)), labels, fontsize=size)
    if len(labels) <= NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)


def reliability_figure(
    before: NDArray[np.float32], after: NDArray[np.float32], leaves: NDArray[np.int64], taxonomy: Taxonomy, name: str
) -> Figure:
    """A reliability diagram per level: accuracy against confidence before and after calibration; the area of a point
    grows with the images in its bin. `before` and `after` are log-probabilities [images, nodes]."""
    from matplotlib.figure import Figure

    points = [confidences(log_probability, leaves, taxonomy) for log_probability in (before, after)]
    errors = [
        calibration_scores(log_probability, leaves, taxonomy)["expected_calibration_error"]
        for log_probability in (before, after)
    ]
    levels = [f"level_{level + 1}" for level in range(taxonomy.depth)]
    figure = Figure(figsize=(4.2 * len(levels), 4.4), layout="constrained")
    for axes, level in zip(np.atleast_1d(figure.subplots(1, len(levels))), levels, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for level_points, error, label in zip(points, errors, ("before", "after"), strict=True):
            counts, mean, accuracy = reliability(*level_points[level])
            full = counts > 0
            axes.plot(mean[full], accuracy[full], linewidth=1, label=f"{label}, error {error[level]:.3f}")
            axes.scatter(mean[full], accuracy[full], s=4 + 160 * counts[full] / counts.sum())
        axes.set(title=level.replace("_", " "), xlabel="probability", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=False)
    figure.suptitle(f"{name}: {len(leaves)} images, {BINS} bins")
    return figure


def _dress(axes: Axes) -> None:
    axes.grid(alpha=0.2, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)

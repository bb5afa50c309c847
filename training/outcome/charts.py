"""Figures of a run, drawn by matplotlib: PNG files in the run's folder, and SVG in the page's text colour.

Formulas are off in all text, because a class may have a name such as `$_{2$`.
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
from protoserve.run.records import AnalysedPrototype, Counts, Rule, SelectionAccuracy, Separation
from protoserve.scores import BINS, calibration_scores, confidences, reliability
from protoserve.similarity_statistics import TELLING
from protoserve.taxonomy import ROOT, Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

# The rows of `history.csv`, one per step: `step`, `stage`, `epoch`, and the numbers that the stage reports.
History = Sequence[Mapping[str, Any]]

# The palette of Okabe and Ito, ordered so that adjacent colours differ; legible on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# If there are more curves than colours, the colours repeat with the next line style.
LINES = ("-", "--", ":")
# Labels of curves; other terms are labelled by their name in the history.
LABELS = {
    "prototype_near_code": "R1, prototype near code",
    "code_near_prototype": "R2, code near prototype",
    "reconstruction": "R, reconstruction",
    "selection_leaf": "leaf",
    "selection_level_1": "level 1",
}
# Names of the total loss; rows with one of them also hold its terms.
SUMS = ("loss", "total")
# Values in those rows that are not curves of the loss: the step, accuracies, and norms of the weights.
NOT_TERMS = ("step", "stage", "epoch", "l1", "l2", "selection_leaf", "selection_level_1")
# The scale of losses is linear up to this absolute value, and logarithmic beyond.
LINEAR = 0.1

# The number of confusion matrices to draw, of the parents with the most mistakes, and how many per row.
MATRICES, COLUMNS = 24, 4
# Above these numbers of children, a confusion matrix has no counts, and no labels, because they would be illegible.
NUMBERED, NAMED = 20, 60
# The longest name of a class that a confusion matrix shows whole.
LONGEST = 48

# Placeholder for `currentColor`, which matplotlib does not support.
_INK = "#010203"
_MARKS: dict[Rule, str] = {"": "o", "duplicates": "s", "purity": "D", "contribution": "o"}
_RULES: dict[Rule, str] = {"duplicates": "near-duplicates merged", "purity": "impure ones pruned"}


def write_figure(file: Path, draw: Callable[[], Figure], console: Console, *, dpi: int = 110) -> None:
    """Draw a figure and write it as a PNG file.

    If it can't be drawn or written, prints a warning with the file and the cause instead, so that the run still
    finishes.
    """
    try:
        write_bytes(file, as_png(draw, dpi=dpi))
    # No error in matplotlib may cost hours of training.
    except Exception as error:  # noqa: BLE001
        console.print(
            f"warning: {file}: can't draw this figure ({type(error).__name__}: {error}); continuing without it",
            markup=False,
            soft_wrap=True,
        )


def as_png(draw: Callable[[], Figure], *, dpi: int = 110) -> bytes:
    """Draw a figure as PNG, black on white."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):
        draw().savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def svg_or_note(draw: Callable[[], Figure], name: str, description: str) -> str:
    """Draw a figure as `as_svg` does; if that fails, return a paragraph that says why, so that the page is written."""
    try:
        return as_svg(draw, name, description)
    # No error in matplotlib may cost the report.
    except Exception as error:  # noqa: BLE001
        return f"<p>This figure can't be drawn ({html.escape(f'{type(error).__name__}: {error}')}).</p>"


def as_svg(draw: Callable[[], Figure], name: str, description: str) -> str:
    """Draw a figure as an SVG element for an HTML page: transparent, in `currentColor`, with selectable text.

    `name` makes its identifiers unique in the page; `description` is its label for screen readers.
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
    # Inside HTML, the element needs no namespaces, and the page sets its size.
    svg = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", svg, count=3).replace("xlink:href", "href")
    svg = re.sub(r'<svg( width="[^"]*"| height="[^"]*")*', "<svg", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="(figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend)_\d+"', "", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


# ---- curves ----------------------------------------------------------------------------------------------------------


def curves_figure(history: History, name: str) -> Figure:
    """Two charts over the steps: the terms of the loss, and below them the accuracies on the selection images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_losses(upper, history)
    _draw_selection(lower, history)
    upper.set(xlabel="", title=f"{name}: training")
    return figure


def losses_figure(history: History) -> Figure:
    """A chart of the terms of the loss over the steps."""
    return _single(_draw_losses, history)


def selection_figure(history: History) -> Figure:
    """A chart of the accuracies on the selection images over the steps."""
    return _single(_draw_selection, history)


def loss_terms(history: History) -> list[str]:
    """The names of the loss terms in a history, including their sum, in order of first occurrence."""
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
    # Terms differ by orders of magnitude, and separation is negative.
    axes.set_yscale("symlog", linthresh=LINEAR)
    # The default labels of this scale are formulas, which are off here.
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
    _style(axes)
    projected = any(row["stage"] == "project" for row in history)
    axes.set_xlabel("step (dotted: projection)" if projected else "step")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


# ---- number of prototypes --------------------------------------------------------------------------------------------


def counts_figure(counts: Counts) -> Figure:
    """Accuracy against the number of prototypes. Markers show the rule that removed prototypes, the band the accuracies
    within the tolerance of the best, and the ring the round that was picked."""
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
    _style(axes)
    axes.set(xlabel="prototypes", ylabel="accuracy on selection images, %")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def separation_figure(prototypes: Sequence[AnalysedPrototype]) -> Figure:
    """Every measured prototype's mean similarity to its own class over that to the siblings. Colour and marker show
    whether it tells its class apart, hardly does, or is always on."""
    from matplotlib.figure import Figure

    found = [prototype.separation for prototype in prototypes if prototype.separation is not None]
    kinds: dict[str, list[Separation]] = {"tells its class apart": [], "in between": [], "always on": []}
    for separation in found:
        kind = "always on" if separation.always_on else "in between"
        kinds["tells its class apart" if separation.effect >= TELLING else kind].append(separation)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for (label, group), colour, marker in zip(kinds.items(), (COLOURS[0], COLOURS[4], COLOURS[1]), "oDs", strict=True):
        axes.plot(
            [separation.siblings for separation in group],
            [separation.own for separation in group],
            linestyle="none",
            marker=marker,
            markersize=4.5,
            alpha=0.75,
            color=colour,
            label=f"{label}: {len(group)}",
        )
    ends = [separation.own for separation in found] + [separation.siblings for separation in found]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.5", linewidth=0.8, linestyle="--")
    _style(axes)
    axes.set(xlabel="mean similarity to the siblings' images", ylabel="to images of the own class")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


# ---- confusion and calibration ---------------------------------------------------------------------------------------


def confusion_figure(confusion: Mapping[str, NDArray[np.int64]], taxonomy: Taxonomy, name: str) -> Figure:
    """One matrix per parent of `protoserve.scores.sibling_confusion`, parents with the most mistakes first.

    Rows are true children, columns predicted ones. The colour shows the share of the row.
    """
    from matplotlib.figure import Figure

    mistakes = {parent: int(counts.sum() - np.trace(counts)) for parent, counts in confusion.items()}
    shown = sorted(confusion, key=lambda parent: (-mistakes[parent], parent))[:MATRICES]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, parent in zip(panels, shown, strict=False):
        node = taxonomy.index[parent] if parent else ROOT
        labels = [_cut(taxonomy.nodes[child][-1]) for child in taxonomy.children_of(node)]
        title = f"{_cut(parent) or 'the root'}: {mistakes[parent]} of {int(confusion[parent].sum())} mistaken"
        _draw_matrix(axes, confusion[parent], labels, title)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    more = f", the {MATRICES} of {len(confusion)} parents with the most mistakes" if len(confusion) > MATRICES else ""
    figure.suptitle(f"{name}: confusion between siblings{more}")
    return figure


def _cut(name: str) -> str:
    """A name, cut where it would leave no room for the figure."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


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
            number = axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour
            )
            # It lies inside the axes; to measure it for the layout would take half of the drawing.
            number.set_in_layout(False)


def reliability_figure(
    before: NDArray[np.float32], after: NDArray[np.float32], leaves: NDArray[np.int64], taxonomy: Taxonomy, name: str
) -> Figure:
    """A reliability diagram per level: accuracy against confidence, before and after calibration.

    The area of a point grows with the number of images in its bin. `before` and `after` are log-probabilities [images,
    nodes].
    """
    from matplotlib.figure import Figure

    points = [confidences(log_probability, leaves, taxonomy) for log_probability in (before, after)]
    errors = [
        calibration_scores(log_probability, leaves, taxonomy).expected_calibration_error
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


def _style(axes: Axes) -> None:
    axes.grid(alpha=0.2, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)

"""Confusion between siblings as a picture: one matrix per parent."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoserve.taxonomy import ROOT, Taxonomy

# More matrices are no picture any more; those with the most mistakes are shown.
SHOWN = 24
COLUMNS = 4
# Members beyond which their numbers, then their names, would not be legible.
NUMBERED, NAMED = 20, 60


def plot_confusion(confusion: Mapping[str, NDArray[np.int64]], taxonomy: Taxonomy, name: str) -> bytes:
    """A PNG of `protoserve.scores.sibling_confusion`: rows are true children, columns what they are taken for, colours
    the share of a row. Parents with the most mistakes come first."""
    from matplotlib.figure import Figure

    mistakes = {parent: int(counts.sum() - np.trace(counts)) for parent, counts in confusion.items()}
    shown = sorted(confusion, key=lambda parent: (-mistakes[parent], parent))[:SHOWN]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * rows), layout="constrained")
    places = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, parent in zip(places, shown, strict=False):
        node = taxonomy.index[parent] if parent else ROOT
        labels = [taxonomy.nodes[child][-1] for child in taxonomy.children_of(node)]
        title = f"{parent or 'the root'}: {mistakes[parent]} of {int(confusion[parent].sum())} mistaken"
        _draw(axes, confusion[parent], labels, title)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    more = f", the {SHOWN} of {len(confusion)} parents with the most mistakes" if len(confusion) > SHOWN else ""
    figure.suptitle(f"{name}: confusion between siblings{more}")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, format="png")
    return buffer.getvalue()


def _draw(axes: Any, counts: NDArray[np.int64], labels: Sequence[str], title: str) -> None:
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
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=size, color=colour)

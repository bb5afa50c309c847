"""Figures: the curves they show, for any history, any number of parents and children, and any name."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from protoserve.run.records import AnalysedPrototype, Counts, CountsRound, PatchSource, Purity, Separation
from protoserve.taxonomy import Taxonomy
from training.outcome.charts import (
    COLUMNS,
    MATRICES,
    History,
    as_png,
    as_svg,
    confusion_figure,
    counts_figure,
    curves_figure,
    loss_terms,
    losses_figure,
    reliability_figure,
    selection_figure,
    separation_figure,
    svg_or_note,
    write_figure,
)

# Matplotlib fails on it where it is read as a formula.
FORMULA = "$_{2$"
ACCURACY = {"selection_leaf": 0.5, "selection_level_1": 0.75}
PROTOTYPES: History = [
    {"step": 0, "stage": "finetune", "epoch": 1, "loss": 3.0, **ACCURACY},
    {
        "step": 1,
        "stage": "joint",
        "epoch": 1,
        "total": 9.0,
        "cross_entropy": 2.0,
        "cluster": 0.1,
        "separation": -0.1,
        "l1": 140.0,
        "l2": 160.0,
        "outside": 0.2,
        "leaf": 2.3,
        "distillation": 6.0,
        "noise": 0.08,
        "another_term": 0.3,
        **ACCURACY,
    },
    {"step": 2, "stage": "project", "epoch": 1, "mean_distance": 0.1, "distinct": 9, "before": 0.5, **ACCURACY},
    {"step": 3, "stage": "calibrate", "epoch": 1, "temperature": 1.1, **ACCURACY},
]
AUTOENCODER: History = [
    {
        "step": 0,
        "stage": "autoencoder",
        "epoch": 1,
        "total": 90.0,
        "cross_entropy": 2.0,
        "reconstruction": 40.0,
        "prototype_near_code": 0.5,
        "code_near_prototype": 0.25,
        **ACCURACY,
    }
]


def curves(axes: Axes) -> dict[str, list[tuple[float, ...]]]:
    """Label → points of the curves in the legend."""
    lines, labels = axes.get_legend_handles_labels()
    return {
        str(label): [tuple(point) for point in np.asarray(line.get_xydata())]  # type: ignore[attr-defined]
        for line, label in zip(lines, labels, strict=True)
    }


def test_every_term_of_the_loss_has_a_curve_and_nothing_else() -> None:
    drawn = curves(losses_figure(PROTOTYPES).axes[0])
    assert set(drawn) == {
        *("loss", "total", "cross entropy", "cluster", "separation"),
        *("outside", "leaf", "distillation", "noise", "another term"),
    }
    assert drawn["noise"] == [(2, 0.08)]
    assert drawn["separation"] == [(2, -0.1)]


def test_an_autoencoders_terms_have_the_names_of_the_paper() -> None:
    assert curves(losses_figure(AUTOENCODER).axes[0]) == {
        "total": [(1, 90.0)],
        "cross entropy": [(1, 2.0)],
        "R, reconstruction": [(1, 40.0)],
        "R1, prototype near code": [(1, 0.5)],
        "R2, code near prototype": [(1, 0.25)],
    }


@pytest.mark.parametrize("history", [PROTOTYPES, AUTOENCODER])
def test_the_run_and_its_report_show_the_same_curves(history: History) -> None:
    losses, selection = curves_figure(history, "run").axes
    assert curves(losses) == curves(losses_figure(history).axes[0])
    assert curves(selection) == curves(selection_figure(history).axes[0])
    assert set(curves(selection)) == {"leaf", "level 1"}


def test_more_curves_than_colours_differ_by_their_line_style() -> None:
    lines = losses_figure(PROTOTYPES).axes[0].get_lines()
    styles = {(line.get_color(), line.get_linestyle()) for line in lines if not str(line.get_label()).startswith("_")}
    assert len(styles) == len(loss_terms(PROTOTYPES)) == 10


def test_an_empty_history_is_drawn() -> None:
    assert as_png(lambda: curves_figure([], "run")).startswith(b"\x89PNG")


def test_accuracy_is_drawn_against_the_number_of_prototypes() -> None:
    rounds = [
        CountsRound(round=0, rule="", prototypes=40, selection_leaf=0.8, selection_level_1=0.9),
        CountsRound(round=1, rule="purity", prototypes=20, selection_leaf=0.8, selection_level_1=0.95),
        CountsRound(round=2, rule="contribution", prototypes=10, selection_leaf=0.5, selection_level_1=0.75),
    ]
    axes = counts_figure(Counts(rounds=rounds, picked=1, tolerance=0.01)).axes[0]
    drawn = curves(axes)
    assert np.allclose(drawn["leaf"], [(40, 80), (20, 80), (10, 50)])
    assert np.allclose(drawn["level 1"], [(40, 90), (20, 95), (10, 75)])
    assert "impure ones pruned" in drawn
    assert "near-duplicates merged" not in drawn
    assert [text.get_text() for text in axes.texts] == ["20 prototypes, 80.0 %"]


def test_prototypes_are_drawn_by_how_well_they_tell_classes_apart() -> None:
    def prototype(own: float, siblings: float, effect: float | None) -> AnalysedPrototype:
        separation = {
            "own": own,
            "siblings": siblings,
            "effect": effect,
            "always_on": effect is not None and effect < 0.5,
        }
        return AnalysedPrototype(
            id=0,
            child="a",
            parent="",
            weight=1.0,
            source=PatchSource(image="a.png", box=(0, 0, 1, 1)),
            purity=Purity(own=1, nearest=1),
            separation=None if effect is None else Separation.model_validate(separation),
            patches=[],
        )

    figure = separation_figure(
        [prototype(3.0, 1.0, 2.0), prototype(2.0, 1.5, 0.75), prototype(1.0, 1.0, 0.0), prototype(9.0, 9.0, None)]
    )
    drawn = curves(figure.axes[0])
    assert drawn["tells its class apart: 1"] == [(1.0, 3.0)]
    assert drawn["in between: 1"] == [(1.5, 2.0)]
    assert drawn["always on: 1"] == [(1.0, 1.0)]


def confusion(taxonomy: Taxonomy, parents: list[str]) -> Figure:
    sizes = {parent: len(taxonomy.children_of(taxonomy.index[parent] if parent else -1)) for parent in parents}
    return confusion_figure(
        {parent: np.eye(size, dtype=np.int64) * 3 for parent, size in sizes.items()}, taxonomy, "run"
    )


def test_one_parent_with_many_children() -> None:
    taxonomy = Taxonomy.from_paths([f"class-{number}" for number in range(70)])
    assert as_png(lambda: confusion(taxonomy, [""])).startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [2, 5, MATRICES + 3])
def test_parents_are_laid_out_in_rows_up_to_a_limit(count: int) -> None:
    taxonomy = Taxonomy.from_paths([f"p{parent}/c{child}" for parent in range(count) for child in range(2)])
    content = as_png(lambda: confusion(taxonomy, [f"p{parent}" for parent in range(count)]), dpi=90)
    picture = Image.open(io.BytesIO(content))
    rows = -(-min(count, MATRICES) // COLUMNS)
    assert picture.height == pytest.approx(rows * 4.4 * 90, abs=2)
    assert picture.width == pytest.approx(min(count, COLUMNS) * 4.6 * 90, abs=2)


def test_reliability_is_drawn_per_level() -> None:
    taxonomy = Taxonomy.from_paths(["a/x", "a/y", "b"])
    leaves = np.array([0, 1, 2])
    certain = np.full((3, len(taxonomy.nodes)), -9.0, dtype=np.float32)
    for image, leaf in enumerate(leaves):
        certain[image, taxonomy.path_at_level[taxonomy.leaves[leaf]]] = 0.0
    figure = reliability_figure(certain, certain, leaves, taxonomy, "run")
    assert [axes.get_title() for axes in figure.axes] == ["level 1", "level 2"]
    assert set(curves(figure.axes[0])) == {"before, error 0.000", "after, error 0.000"}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: confusion(Taxonomy.from_paths([f"{FORMULA}/{FORMULA}", f"{FORMULA}/x", "y"]), ["", FORMULA]),
        lambda: curves_figure(PROTOTYPES, FORMULA),
        lambda: losses_figure(AUTOENCODER),
    ],
)
def test_a_name_is_not_a_formula(draw: Callable[[], Figure]) -> None:
    assert as_png(draw).startswith(b"\x89PNG")
    assert as_svg(draw, "name", "a figure").startswith("<svg")


def test_an_svg_shows_text_as_it_is_in_the_pages_ink() -> None:
    svg = as_svg(lambda: curves_figure(PROTOTYPES, FORMULA), "curves", 'Curves & "terms"')
    assert f"{FORMULA}: training" in svg
    assert "currentColor" in svg
    assert 'aria-label="Curves &amp; &quot;terms&quot;"' in svg


def test_a_figure_that_cannot_be_drawn_leaves_a_warning(tmp_path: Path) -> None:
    screen = io.StringIO()

    def fail() -> Figure:
        raise ValueError("no such colour")

    write_figure(tmp_path / "curves.png", fail, Console(file=screen, width=200))
    assert not any(tmp_path.iterdir())
    assert "warning: " in screen.getvalue()
    assert "curves.png: can't draw this figure (ValueError: no such colour)" in screen.getvalue()

    write_figure(tmp_path / "curves.png", lambda: curves_figure(PROTOTYPES, "run"), Console(file=screen))
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_a_figure_that_cannot_be_written_leaves_a_warning(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    write_figure(tmp_path / "gone" / "curves.png", lambda: curves_figure(PROTOTYPES, "run"), console)
    assert "curves.png: can't draw this figure (FileNotFoundError" in screen.getvalue()


def test_a_figure_that_cannot_be_drawn_leaves_a_note_on_the_page() -> None:
    def fail() -> Figure:
        raise ValueError("no <colour>")

    note = svg_or_note(fail, "curves", "Curves")
    assert note == "<p>This figure can't be drawn (ValueError: no &lt;colour&gt;).</p>"
    assert svg_or_note(lambda: losses_figure(PROTOTYPES), "losses", "Losses").startswith("<svg")


@pytest.mark.parametrize("name", ["$_{2$", "$$", "100 %", "{0}", "[/red]", "<b>", "a" * 300, "_x_", "^"])
def test_no_name_of_a_class_keeps_a_figure_from_being_drawn(name: str) -> None:
    taxonomy = Taxonomy.from_paths([f"{name}x/{name}1", f"{name}x/{name}2", f"{name}y"])
    confusion = {"": np.eye(2, dtype=np.int64), f"{name}x": np.eye(2, dtype=np.int64)}
    assert as_png(lambda: confusion_figure(confusion, taxonomy, name)).startswith(b"\x89PNG")
    assert as_png(lambda: curves_figure(PROTOTYPES, name)).startswith(b"\x89PNG")

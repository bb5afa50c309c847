"""A prediction and scores as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich.console import Console, RenderableType

from protoserve.cli.terminal import prediction_tree, scores_line, scores_report
from protoserve.run.records import Evaluation, Scores
from protoserve.schema import ImageSize, Level, ModelReference, Prediction
from protoserve.scores import scores
from protoserve.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_paths(["Animal/Ape", "Animal/Lion", "Tool"])
# Two of three leaves right; the third picture is put under the right parent.
PROBABILITY = {"Animal/Ape": (0.5, 0.25, 0.25), "Animal/Lion": (0.5, 0.25, 0.25), "Tool": (0.125, 0.125, 0.75)}


def metrics() -> Scores:
    """The scores of three pictures, one of every leaf."""
    leaves = [TAXONOMY.names[leaf] for leaf in TAXONOMY.leaves]
    rows = [dict(zip(("Animal/Ape", "Animal/Lion", "Tool"), PROBABILITY[leaf], strict=True)) for leaf in leaves]
    table = [
        [math.log(sum(value for leaf, value in row.items() if f"{leaf}/".startswith(f"{name}/"))) for name in names]
        for row in rows
        for names in [TAXONOMY.names]
    ]
    return scores(np.array(table), np.arange(3), TAXONOMY)


def test_the_line_names_every_level() -> None:
    line = scores_line(metrics())
    assert line == "level_1 100.0 %  level_2 66.7 %  leaf 66.7 %  (macro 66.7 %, 3 images)"


def printed(parts: Iterable[RenderableType]) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return captured.get()


def test_the_report_shows_accuracy_mistakes_and_the_hardest_siblings() -> None:
    out = printed(scores_report(Evaluation(**dict(metrics()), seconds=1.0)))
    assert "3 images" in out and "level 1" in out and "100.0%" in out
    assert "macro accuracy 66.7%; mistakes 1.00 levels up on average, 0.333 over all images" in out
    assert "hardest to tell apart: the children of Animal 50.0% of 2; of the root 100.0% of 3" in out


def test_novel_images_have_a_table_of_their_own() -> None:
    found = {"auroc": 0.75, "fpr95": 0.5}
    parent = {"novel_images": 4, "known_images": 8, "scores": {"energy": found, "support": {"auroc": None}}}
    novel = {
        "images": 4,
        "parents": {"": parent | {"rejected": 0.25}, "Animal": parent},
        "right_level_1": 0.5,
        "undecided": 2,
    }
    out = printed(scores_report(Evaluation(**dict(metrics()), novel=novel, seconds=1.0)))
    assert "4 novel images" in out and "the root" in out and "0.750 / 0.50" in out and "25%" in out
    assert "under the right node of level 1: 50.0%" in out
    assert "2 novel images lie below a parent with one child" in out


def prediction_of(*levels: Level) -> Prediction:
    return Prediction(
        model=ModelReference(name="m", version="v"),
        image=ImageSize(width=1, height=1),
        path=[level.label for level in levels],
        known_through_level=sum(level.known is True for level in levels),
        levels=list(levels),
    )


def test_a_label_with_brackets_is_printed_as_it_is(photograph: Path) -> None:
    level = Level(level=1, node="[bold]x[/]", label="[bold]x[/]", probability=1.0, conditional=1.0)
    assert "[bold]x[/]  100.0%" in printed([prediction_tree(photograph, prediction_of(level))])


def test_an_only_child_and_an_unknown_class_are_marked(photograph: Path) -> None:
    first = Level(level=1, node="A", label="A", probability=0.75, conditional=0.75, known=True)
    second = Level(level=2, node="A/B", label="B", probability=0.75, conditional=1.0, forced=True, known=True)
    third = Level(level=3, node="A/B/C", label="C", probability=0.5, conditional=0.625, known=False)
    fourth = Level(level=4, node="A/B/C/D", label="D", probability=0.25, conditional=0.5, known=False)
    out = printed([prediction_tree(photograph, prediction_of(first, second, third, fourth))])
    assert "A  75.0%\n" in "\n".join(line.rstrip() for line in out.splitlines())
    assert "B  75.0%  (an only child)" in out
    assert "C  50.0%  unknown: like none of the classes of B  (62.5% given B)" in out
    # Below an unknown class no other is named.
    assert "D  25.0%  unknown  (50.0% given C)" in out

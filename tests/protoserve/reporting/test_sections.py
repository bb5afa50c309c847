"""Sections of a report that are tables of records."""

from __future__ import annotations

from protoserve.pages.html import joined
from protoserve.reporting.prototypes import GroupSeparation
from protoserve.reporting.sections import (
    calibration_section,
    figure,
    percent,
    provenance_section,
    scores_section,
    separation_table,
    stage_rows,
    table,
    tiles,
)
from protoserve.run.provenance import DataReference, Provenance
from protoserve.run.records import (
    BestEpochRecord,
    Metrics,
    PlainClassifier,
    ProjectionRecord,
    Scores,
    SelectionAccuracy,
)

SCORES = Scores(
    images=40,
    accuracy={"level_1": 0.975, "leaf": 0.875},
    macro_accuracy=0.85,
    mistake_severity=1.25,
    expected_calibration_error={"level_1": 0.01, "leaf": 0.025},
)


def test_numbers_that_are_missing_are_dashes() -> None:
    assert (percent(None), percent(0.12345, 2), figure(None), figure(0.12345)) == ("–", "12.35", "–", "0.123")


def test_scores_stand_in_tiles_and_in_a_table() -> None:
    metrics = Metrics(test=SCORES, selection=SCORES)
    shown = str(tiles(metrics, 30, 5))
    assert "leaf accuracy, test" in shown and "87.5 %" in shown and "of 5 nodes" in shown and "1.25" in shown
    section = scores_section(metrics)
    assert '<th scope="row">test</th><td>40</td><td>97.50</td><td>87.50</td><td>85.00</td>' in section
    assert tiles(Metrics(), 0, 0) is None and "There are no scores." in scores_section(Metrics())


def test_a_stage_that_starts_where_the_last_ended_is_not_repeated() -> None:
    one, two, three = (SelectionAccuracy(selection_leaf=value, selection_level_1=value) for value in (0.5, 0.6, 0.7))
    metrics = Metrics(
        projection=ProjectionRecord(before=one, after=two), anchored=BestEpochRecord(before=two, after=three, epoch=1)
    )
    assert [label for label, _ in stage_rows(metrics)] == ["before projection", "after projection", "after anchoring"]
    plain = PlainClassifier(images=10, accuracy={"leaf": 0.5, "level_1": 0.75})
    label, accuracy = stage_rows(metrics.model_copy(update={"plain": plain}))[0]
    assert label == "plain classifier on the same features"
    assert (accuracy.selection_leaf, accuracy.selection_level_1) == (0.5, 0.75)


def test_calibration_says_what_is_missing() -> None:
    assert "no measure of calibration" in calibration_section(Metrics(), None)
    assert "leaf 2.50 %" in calibration_section(Metrics(test=SCORES), None)


def test_tables_escape_and_mark() -> None:
    shown = table(("<a>", "b"), [("x & y", "1"), ("z", "2")], picked=1)
    assert "&lt;a&gt;" in shown and "x &amp; y" in shown and shown.count("aria-current") == 1
    parents = separation_table([GroupSeparation("", 4, 2, 1, 0.75)])
    assert "the root" in joined(parents) and "<td>0.75</td>" in joined(parents)
    assert separation_table([]) is None


def test_the_origin_comes_before_the_data() -> None:
    origin = Provenance(
        data=DataReference(root="photos", fingerprint="sha256:1"), python="3.12", versions={"numpy": "2"}
    )
    shown = provenance_section(origin, "name: <x>", {"bundle": "sha256:2"})
    assert shown.index("sha256:2") < shown.index("photos") and "Python 3.12, numpy 2" in shown
    assert "name: &lt;x&gt;" in shown

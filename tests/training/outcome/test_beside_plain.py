"""Training says how far the prototypes are from a plain classifier on the same features."""

from __future__ import annotations

from protoserve.run.records import Metrics, PlainClassifier, Scores
from training.outcome.beside_plain import beside_plain


def metrics(plain: dict[str, float] | None, own: dict[str, float], images: int = 200) -> Metrics:
    scores = Scores(images=images, accuracy=own, macro_accuracy=own["leaf"])
    if plain is None:
        return Metrics(selection=scores)
    return Metrics(selection=scores, plain=PlainClassifier(images=images, accuracy=plain))


def test_both_accuracies_are_told() -> None:
    [line] = beside_plain(metrics({"leaf": 0.905, "level_1": 0.98}, {"leaf": 0.9, "level_1": 0.985}))
    assert "200 selection images: leaves 90.5% (90.0%), level 1 98.0% (98.5%)" in line


def test_prototypes_more_than_a_point_below_are_warned_of() -> None:
    _, warning = beside_plain(
        metrics({"leaf": 0.908, "level_2": 0.95, "level_1": 0.987}, {"leaf": 0.87, "level_2": 0.945, "level_1": 0.99})
    )
    assert warning.startswith("warning: the prototypes are 3.8 points below the plain classifier at leaves. Try ")


def test_one_picture_is_no_reason_to_warn() -> None:
    assert len(beside_plain(metrics({"leaf": 0.95, "level_1": 1.0}, {"leaf": 0.90, "level_1": 1.0}, images=20))) == 1
    assert len(beside_plain(metrics({"leaf": 0.95, "level_1": 1.0}, {"leaf": 0.85, "level_1": 1.0}, images=20))) == 2


def test_a_run_without_a_plain_classifier_says_nothing() -> None:
    assert beside_plain(metrics(None, {"leaf": 0.9, "level_1": 1.0})) == []

"""What a terminal says of a promise: what holds, what it can't promise, and how few pictures stand behind it."""

from __future__ import annotations

import doctest
from pathlib import Path

from protoserve.bundle.folder import read_bundle
from protoserve.bundle.manifest import ListRecord
from protoserve.cli import promise_report as module
from protoserve.cli.promise_report import answers_table, promise_lines
from protoserve.run.promise_records import AnswerScores, Resplits
from protoserve.schema import NoveltyRecord, PromiseRecord

PROMISE = PromiseRecord(
    precision=0.95,
    confidence=0.95,
    images=100,
    thresholds={"0.9": 0.5, "0.95": 0.8125, "0.99": None},
    least_images={"0.9": 36, "0.95": 72, "0.99": 368},
    folder="calibration",
)


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0


def test_a_bundles_promise_and_what_stands_behind_it(tiny_bundle: Path) -> None:
    manifest = read_bundle(tiny_bundle).manifest
    assert [style for _, style in promise_lines(manifest)] == ["yellow"]
    novelty = NoveltyRecord(
        score="energy", true_positive_rate=0.95, thresholds={"": 1.0}, images={"": 90, "Animal": 5}, pooled=["Animal"]
    )
    lists = {"zoo": ListRecord(allow=["Animal"])}
    full = manifest.model_copy(update={"promise": PROMISE, "novelty": novelty, "lists": lists})
    assert list(promise_lines(full)) == [
        (
            "answers where the probability is 0.812 or more, to be right in 0.95 of the cases (100 calibration "
            "pictures, confidence 0.95)",
            "",
        ),
        ("precisions that the calibration pictures can't promise: 0.99 needs 368 pictures or more", "yellow"),
        ("pictures behind the novelty thresholds: the root 90, Animal 5", ""),
        ("too few of their own, so they share a threshold: Animal", "yellow"),
        ("list 'zoo': allow Animal", ""),
    ]
    silent = PROMISE.model_copy(update={"precision": 0.99})
    first, _ = next(promise_lines(manifest.model_copy(update={"promise": silent})))
    assert first.startswith("can't promise its precision of 0.99, so gives no answers at it")


def test_a_split_has_coverage_and_precision_by_level() -> None:
    scores = AnswerScores(
        images=200,
        answered={"level_1": 20, "level_2": 0, "all": 20},
        right={"level_1": 19, "level_2": 0, "all": 19},
        resplits=Resplits(rounds=100, held=97, silent=2, coverage=0.1),
    )
    table = answers_table({"0.9": scores})
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["0.9", "10.0% / 95.0%", "0.0% / –", "10.0% / 95.0%", "97 of 100 (2 without answers)"]

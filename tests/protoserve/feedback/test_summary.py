"""Feedback in numbers."""

from __future__ import annotations

import pytest

from protoserve.feedback.store import Kept
from protoserve.feedback.summary import agreed, right_nodes, summary
from tests.protoserve.feedback.records import MODEL, record

NEWER = "sha256:" + "cd" * 32
RECORDS = (
    record(0),
    record(1, verdict="wrong", node="Fruit/Pear"),
    record(2, verdict="wrong", node="Fruit/Pear"),
    # The same picture by another person, who disagrees.
    record(2, verdict="wrong", node="Tool", request="later"),
    record(3, verdict="wrong"),
    record(4, verdict="wrong reason", prototypes=[7, 8]),
    record(5, verdict="wrong reason", prototypes=[8]),
    record(6, model=NEWER),
)


def test_verdicts_confusions_and_blame_are_counted_by_version_and_picture() -> None:
    found = summary(Kept(RECORDS, repeated=1, torn=2))
    assert (found.records, found.repeated, found.torn) == (8, 1, 2)
    newest, version = found.versions
    assert (newest.model, newest.verdicts) == (NEWER, {"right": 1, "wrong": 0, "wrong reason": 0})
    assert (version.model, version.pictures) == (MODEL, 6)
    assert version.verdicts == {"right": 1, "wrong": 4, "wrong reason": 2}
    assert [(confusion.right, confusion.pictures) for confusion in version.confusions] == [
        ("Fruit/Pear", 2),
        (None, 1),
        ("Tool", 1),
    ]
    assert [(blame.prototype, blame.pictures) for blame in version.blamed] == [(8, 2), (7, 1)]
    assert version.disputed == [record(2).image]
    assert (version.first, version.last) == ("2026-03-01T12:00:00+00:00", "2026-03-01T12:00:05+00:00")


def test_without_feedback_there_is_nothing_to_sum_up() -> None:
    assert summary(Kept(())).versions == []


@pytest.mark.parametrize(
    ("nodes", "node"),
    [
        ({"Fruit/Pear"}, "Fruit/Pear"),
        ({"Fruit", "Fruit/Pear"}, "Fruit/Pear"),
        ({"Fruit/Apple", "Fruit/Pear"}, None),
        # A longer name is not a node below.
        ({"Fruit", "Fruits/Pear"}, None),
    ],
)
def test_people_agree_where_one_node_lies_below_all_others(nodes: set[str], node: str | None) -> None:
    assert agreed(nodes) == node


def test_the_right_node_is_the_correction_or_the_confirmed_leaf() -> None:
    assert right_nodes(RECORDS[:2]) == {record(0).image: {"Fruit/Apple"}, record(1).image: {"Fruit/Pear"}}
    assert right_nodes([record(3, verdict="wrong"), RECORDS[5]]) == {}

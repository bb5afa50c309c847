"""What counts as a difference between two answers."""

from __future__ import annotations

from typing import Any

import pytest

from protoserve.replay.comparing import differences


def answer(**changes: Any) -> dict[str, Any]:
    level = {
        "level": 1,
        "node": "Fruit",
        "logit": 20.0,
        "known": None,
        "evidence": [{"prototype": 1, "contribution": 2.0, "box": [0, 1, 2, 3]}, {"prototype": 2, "contribution": 1.0}],
    }
    return {"path": ["Fruit"], "levels": [level | changes]}


@pytest.mark.parametrize(
    "change",
    [
        {"logit": 20.001},
        {"more": 1},
        # The second is equal to another one, which is shown in its place.
        {
            "evidence": [
                {"prototype": 1, "contribution": 2.00005, "box": [0, 1, 2, 3]},
                {"prototype": 3, "contribution": 1.0},
            ]
        },
    ],
)
def test_rounding_ties_and_new_fields_are_no_differences(change: dict[str, Any]) -> None:
    assert differences(answer(), answer(**change), 1e-4) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logit": 20.01}, "levels 1, logit: was 20.0, is 20.01"),
        ({"logit": None}, "levels 1, logit: was 20.0, is None"),
        ({"known": True}, "levels 1, known: was None, is True"),
        ({"node": "Tool"}, "levels 1, node: was 'Fruit', is 'Tool'"),
        (
            {
                "evidence": [
                    {"prototype": 1, "contribution": 2.0, "box": [0, 1, 2, 4]},
                    {"prototype": 2, "contribution": 1.0},
                ]
            },
            "levels 1, evidence 1, box 4: was 3, is 4",
        ),
    ],
)
def test_a_difference_is_named_by_its_place_and_both_values(change: dict[str, Any], said: str) -> None:
    assert differences(answer(), answer(**change), 1e-4) == [said]


def test_a_prototype_that_is_gone_is_named() -> None:
    assert differences(answer(), answer(evidence=[]), 1e-4) == [
        "levels 1, evidence 1: is no longer shown",
        "levels 1, evidence 2: is no longer shown",
        "levels 1, evidence: were 2, are 0",
    ]
    assert differences({"a": 1}, {}, 1e-4) == ["a: is no longer given"]

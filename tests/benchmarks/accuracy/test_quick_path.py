"""What counts as the same answer, worked by hand."""

from __future__ import annotations

from benchmarks.accuracy.quick_path import SAME, TIE, differences, same_pieces
from protoserve.schema import Evidence, EvidenceSource
from service.contract.example import EXAMPLE

SOURCE = EvidenceSource(image="a.jpg", box=(0, 0, 1, 1), href=None)


def piece(prototype: int, contribution: float, left: int = 0) -> Evidence:
    return Evidence(
        prototype=prototype,
        similarity=1.0,
        usual=0.0,
        weight=contribution,
        contribution=contribution,
        box=(left, 0, left + 1, 1),
        source=SOURCE,
    )


def test_the_order_of_tied_pieces_may_differ_and_nothing_else() -> None:
    first, second, third = piece(1, 2.0), piece(2, 2.0 - 0.5 * TIE), piece(3, 1.0)
    assert same_pieces([first, second, third], [first, second, third])
    assert same_pieces([second, first, third], [first, second, third])
    assert not same_pieces([first, third], [first, second])
    assert not same_pieces([first], [first, second])
    # Another box for the same prototype, whose contribution stands alone.
    assert not same_pieces([piece(1, 2.0, left=9), third], [first, third])


def test_an_answer_is_the_same_as_itself_in_all_respects() -> None:
    found = differences(EXAMPLE, EXAMPLE)
    assert tuple(found) == SAME and all(found.values())
    other = EXAMPLE.model_copy(update={"path": ["Nowhere"], "known_through_level": 0})
    assert [name for name, equal in differences(other, EXAMPLE).items() if not equal] == ["path", "known"]

"""Progress in a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from training.progress import console, tracked


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def log_of(seconds_per_item: float, items: int) -> list[str]:
    text, clock = io.StringIO(), Clock()
    with tracked(Console(file=text), "decoding [view 1]", items, clock) as advance:
        for _ in range(items):
            clock.seconds += seconds_per_item
            advance(1)
    return text.getvalue().splitlines()


def test_a_log_gets_a_line_at_intervals_and_one_at_the_end() -> None:
    assert log_of(2.0, 40) == [
        "decoding [view 1]: 3 of 40 after 6 s",
        "decoding [view 1]: 18 of 40 after 36 s",
        "decoding [view 1]: 33 of 40 after 66 s",
        "decoding [view 1]: 40 of 40 after 80 s",
    ]


def test_short_work_leaves_no_line_in_a_log() -> None:
    assert log_of(0.1, 40) == []


def test_failed_work_logs_no_end() -> None:
    text, clock = io.StringIO(), Clock()
    with pytest.raises(ValueError, match="torn"), tracked(Console(file=text), "reading", 9, clock) as advance:
        clock.seconds += 7
        advance(4)
        raise ValueError("torn")
    assert text.getvalue() == "reading: 4 of 9 after 7 s\n"


def test_a_terminal_gets_a_bar() -> None:
    text = io.StringIO()
    with tracked(Console(file=text, force_terminal=True, width=120), "projection", 3) as advance:
        advance(3)
    assert "projection" in text.getvalue() and "3/3" in text.getvalue()


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("half")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "half\n")

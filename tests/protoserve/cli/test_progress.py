"""Progress goes to standard error: a bar in a terminal, lines in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from protoserve.cli import progress as module
from protoserve.cli.progress import LINE_SECONDS, counting, progress, progress_lines, steps


class Clock:
    """Seconds that pass only when the test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would show."""
    text = io.StringIO()
    screen = Console(file=text, force_terminal=True, width=120)
    monkeypatch.setattr(module, "console", lambda **options: screen)
    return text


def test_a_log_gets_a_line_at_intervals_that_counts_what_was_done_before() -> None:
    text, clock = io.StringIO(), Clock()
    with progress_lines(Console(file=text), "scoring [test]", 10, clock, done=4) as advance:
        advance(1)
        for seconds in (6.0, 7.0, 7.0 + LINE_SECONDS):
            clock.seconds = seconds
            advance(1)
        advance(2)
    assert text.getvalue().splitlines() == [
        "scoring [test]: 6 of 10 after 6 s",
        "scoring [test]: 8 of 10 after 37 s",
        "scoring [test]: 10 of 10 after 37 s",
    ]


def test_progress_goes_to_standard_error_without_carriage_returns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    with progress("counting", 10, done=4) as advance:
        advance(5)
    with counting("of some total") as count:
        count(2, 4)
        count(2, 4)
    output = capsys.readouterr()
    assert output.out == "" and "\r" not in output.err
    assert "counting: 9 of 10 after 0 s" in output.err and "of some total: 4 of 4 after 0 s" in output.err


def test_short_work_leaves_no_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("nothing"):
        pass
    with progress("counting", 1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(terminal: io.StringIO) -> None:
    with progress("counting", 10, done=4) as advance:
        advance(5)
    assert "counting" in terminal.getvalue() and "9/10" in terminal.getvalue()


def test_a_log_gets_a_line_for_every_step_and_a_terminal_the_one_that_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with steps("reading [the run]") as report:
        report("writing [model].onnx")
    assert capsys.readouterr().err == "writing [model].onnx, after 0 s\n"


def test_a_terminal_shows_the_step_that_runs(terminal: io.StringIO) -> None:
    with steps("reading the run") as report:
        report("writing [model].onnx")
    assert "writing [model].onnx" in terminal.getvalue()

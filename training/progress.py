"""Progress on standard error; standard output is for results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from protoserve.cli import output

# In a log, tasks shorter than FIRST_SECONDS print no line; longer ones print a line every LINE_SECONDS.
FIRST_SECONDS = 5.0
LINE_SECONDS = 30.0


@contextmanager
def tracked(
    console: Console, description: str, total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """Show progress while the block runs. The block receives a function and calls it with the number of items done.

    A terminal shows a bar. Other outputs, such as a log file, get plain lines: the first after `FIRST_SECONDS`, then
    one every `LINE_SECONDS`, and one at the end. `clock` returns seconds.
    """
    if not console.is_terminal:
        yield from _plain_lines(console, description, total, clock)
        return
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


def _plain_lines(
    console: Console, description: str, total: int, clock: Callable[[], float]
) -> Iterator[Callable[[int], None]]:
    began = clock()
    done, due = 0, began + FIRST_SECONDS

    def line() -> None:
        console.print(f"{description}: {done} of {total} after {clock() - began:.0f} s", markup=False, soft_wrap=True)

    def advance(items: int) -> None:
        nonlocal done, due
        done += items
        if clock() >= due and done < total:
            line()
            due = clock() + LINE_SECONDS

    yield advance
    if clock() >= began + FIRST_SECONDS:
        line()


def console() -> Console:
    """A console that prints to standard error."""
    return output.console(error=True)

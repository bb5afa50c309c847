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
from protoserve.cli.progress import progress_lines


@contextmanager
def tracked(
    console: Console, description: str, total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """Show progress while the block runs. The block receives a function and calls it with the number of items done.

    A terminal shows a bar. Other outputs, such as a log file, get the lines of `progress_lines`. `clock` returns
    seconds.
    """
    if not console.is_terminal:
        with progress_lines(console, description, total, clock) as advance:
            yield advance
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


def console() -> Console:
    """A console that prints to standard error."""
    return output.console(error=True)

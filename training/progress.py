"""Progress on standard error, so that standard output stays free for results."""

from __future__ import annotations

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


@contextmanager
def tracked(console: Console, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar while the block runs; the block calls what it is given with the number of items done.

    Where the console is no terminal (a log file) nothing is shown; the line of every finished step remains.
    """
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


def console() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)

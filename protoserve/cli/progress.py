"""Progress bars on standard error; standard output is for results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from protoserve.cli.output import console


@contextmanager
def progress(description: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar while the block runs. The block receives a function and calls it with the number of items
    done; `done` items count from the start."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(error=True)) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda items: bar.advance(task, items)

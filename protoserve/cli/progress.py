"""Progress on standard error: a bar in a terminal, lines in a log. Standard output is for results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from protoserve.cli.output import console

if TYPE_CHECKING:
    from rich.console import Console

# In a log, tasks shorter than FIRST_SECONDS print no line; longer ones print a line every LINE_SECONDS.
FIRST_SECONDS: Final = 5.0
LINE_SECONDS: Final = 30.0


@contextmanager
def progress(description: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress while the block runs. The block receives a function and calls it with the number of items done;
    `done` items count from the start. A log gets the lines of `progress_lines`."""
    screen = console(error=True)
    if not screen.is_terminal:
        with progress_lines(screen, description, total, done=done) as advance:
            yield advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda items: bar.advance(task, items)


@contextmanager
def progress_lines(
    screen: Console, description: str, total: int, clock: Callable[[], float] = time.monotonic, *, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Print how far the block is: a line after `FIRST_SECONDS`, then one every `LINE_SECONDS`, and one at the end.

    The block receives a function and calls it with the number of items done. `clock` returns seconds.
    """
    began = clock()
    due = began + FIRST_SECONDS

    def line() -> None:
        screen.print(f"{description}: {done} of {total} after {clock() - began:.0f} s", markup=False, soft_wrap=True)

    def advance(items: int) -> None:
        nonlocal done, due
        done += items
        if clock() >= due and done < total:
            line()
            due = clock() + LINE_SECONDS

    yield advance
    if clock() >= began + FIRST_SECONDS:
        line()


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress as `progress` does. The block calls its function with the items done and with their total, which is
    known only then."""
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def count(done: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(progress(description, total))
            advance(done)

        yield count


def steps(first: str) -> AbstractContextManager[Callable[[str], None]]:
    """Show which step the block is at. The block receives a function and calls it with the text of every step.

    A terminal shows the step that runs, beginning with `first`. A log gets a line for each step that starts, with the
    seconds since the beginning.
    """
    screen = console(error=True)
    return _status(screen, first) if screen.is_terminal else _step_lines(screen)


@contextmanager
def _status(screen: Console, first: str) -> Iterator[Callable[[str], None]]:
    from rich.markup import escape

    with screen.status(first) as status:
        yield lambda step: status.update(escape(step))


@contextmanager
def _step_lines(screen: Console) -> Iterator[Callable[[str], None]]:
    began = time.monotonic()
    yield lambda step: screen.print(f"{step}, after {time.monotonic() - began:.0f} s", markup=False, soft_wrap=True)

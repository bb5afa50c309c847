"""How much at a time: turns at work in threads, places in the queue, memory for bodies. What is too much gets 503."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

import anyio
import anyio.to_thread

from service.problems import Problem

P = ParamSpec("P")
T = TypeVar("T")

# Long enough for a queue to get shorter, short enough for a client that has a person waiting.
_RETRY = {"Retry-After": "1"}


class Turns:
    """At most `most` calls at a time in worker threads; the others wait for their turn, up to `seconds`."""

    def __init__(self, most: int, seconds: float) -> None:
        self.seconds = seconds
        self._turns = anyio.Semaphore(most)
        self._threads = anyio.CapacityLimiter(most)

    async def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call `function` in its turn; raises Problem `overloaded` when none comes in time."""
        try:
            with anyio.fail_after(self.seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise no_turn(self.seconds) from None
        try:
            return await anyio.to_thread.run_sync(partial(function, *arguments, **named), limiter=self._threads)
        finally:
            self._turns.release()


class Places:
    """Room for `most` of something (pictures, bytes) in one process; asked for and given back in the event loop."""

    def __init__(self, most: int, what: str) -> None:
        self.most = most
        self.what = what
        self.used = 0

    @contextmanager
    def hold(self, count: int = 0) -> Iterator[Callable[[int], None]]:
        """Take `count` places, and more by calling what it gives; all go back at the end.

        Raises Problem `overloaded` when there is not enough room left.
        """
        held = 0

        def take(more: int) -> None:
            nonlocal held
            if self.used + more > self.most:
                raise Problem(
                    "overloaded",
                    f"the service holds all the {self.what} that it may ({self.most:,}); try again",
                    _RETRY,
                )
            self.used += more
            held += more

        try:
            take(count)
            yield take
        finally:
            self.used -= held


def no_turn(seconds: float) -> Problem:
    """The problem of a request that nobody had time for."""
    return Problem(
        "overloaded", f"the service had no turn for this request within {seconds:g} seconds; try again", _RETRY
    )

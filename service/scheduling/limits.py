"""Admission limits: concurrent work in threads, queue length, memory for request bodies. Excess requests get 503."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from service.contract.problems import Problem

P = ParamSpec("P")
T = TypeVar("T")

# Long enough for a queue to drain a little, short enough for a person who is waiting.
_RETRY: Final = {"Retry-After": "1"}


class ConcurrencyLimiter:
    """Runs at most `limit` calls at a time in worker threads. Further calls wait up to `timeout` seconds."""

    def __init__(self, limit: int, timeout: float) -> None:
        self.timeout = timeout
        self._semaphore = anyio.Semaphore(limit)
        self._threads = anyio.CapacityLimiter(limit)

    async def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call `function` in a thread. Raises Problem `overloaded` when no thread becomes free in time."""
        try:
            with anyio.fail_after(self.timeout):
                await self._semaphore.acquire()
        except TimeoutError:
            raise queue_timeout(self.timeout) from None
        try:
            return await anyio.to_thread.run_sync(partial(function, *arguments, **named), limiter=self._threads)
        finally:
            self._semaphore.release()


class CapacityBudget:
    """A budget of `capacity` units (images, bytes) in one process. Use it in the event loop only."""

    def __init__(self, capacity: int, unit: str) -> None:
        self.capacity = capacity
        self.unit = unit
        self.used = 0

    @contextmanager
    def reserve(self, count: int = 0) -> Iterator[Callable[[int], None]]:
        """Reserve `count` units until the end of the `with` block.

        Yields a function that reserves more. Both raise Problem `overloaded` when the budget is exhausted.
        """
        reserved = 0

        def reserve_more(more: int) -> None:
            nonlocal reserved
            if self.used + more > self.capacity:
                raise Problem(
                    "overloaded",
                    f"the service is at its limit of {self.capacity:,} {self.unit}; try again later",
                    _RETRY,
                )
            self.used += more
            reserved += more

        try:
            reserve_more(count)
            yield reserve_more
        finally:
            self.used -= reserved


def queue_timeout(seconds: float) -> Problem:
    """Build the problem for a request that was not started within `seconds`."""
    return Problem(
        "overloaded", f"the service could not start on this request within {seconds:g} seconds; try again later", _RETRY
    )

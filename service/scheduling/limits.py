"""Admission limits: concurrent work in threads, queue length, memory for request bodies. Excess requests get 503."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from service.contract.problems import Problem
from service.operations.request_context import current_context

# The most of a budget that one client holds while no other holds any.
CLIENT_SHARE: Final = 0.75

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


@dataclass
class _Holding:
    """What one client holds of a budget."""

    reservations: int = 0
    units: int = 0


class CapacityBudget:
    """A budget of `capacity` units (images, bytes) in one process. Use it in the event loop only.

    No client (`RequestContext.client`) takes all of it: beside its other requests, a request is refused if its client
    would hold more than `CLIENT_SHARE` of what the others leave. So a client that comes next always finds room.
    """

    def __init__(self, capacity: int, unit: str) -> None:
        self.capacity = capacity
        self.unit = unit
        self.used = 0
        self._holdings: defaultdict[str, _Holding] = defaultdict(_Holding)

    @contextmanager
    def reserve(self, count: int = 0) -> Iterator[Callable[[int], None]]:
        """Reserve `count` units until the end of the `with` block.

        Yields a function that reserves more. Both raise Problem `overloaded` when the budget is exhausted.
        """
        reserved = 0
        client = current_context().client
        holding = self._holdings[client]
        holding.reservations += 1

        def reserve_more(more: int) -> None:
            nonlocal reserved
            if self.used + more > self.capacity:
                raise Problem(
                    "overloaded",
                    f"the service is at its limit of {self.capacity:,} {self.unit}; try again later",
                    _RETRY,
                )
            share = CLIENT_SHARE * (self.capacity - self.used + holding.units)
            if more and holding.reservations > 1 and holding.units + more > share:
                raise Problem(
                    "overloaded",
                    f"your other requests hold {holding.units:,} of {self.capacity:,} {self.unit}, and the rest is "
                    "for other clients; try again later, with fewer requests at a time",
                    _RETRY,
                )
            self.used += more
            holding.units += more
            reserved += more

        try:
            reserve_more(count)
            yield reserve_more
        finally:
            self.used -= reserved
            holding.units -= reserved
            holding.reservations -= 1
            if not holding.reservations:
                del self._holdings[client]


def queue_timeout(seconds: float) -> Problem:
    """Build the problem for a request that was not started within `seconds`."""
    return Problem(
        "overloaded", f"the service could not start on this request within {seconds:g} seconds; try again later", _RETRY
    )

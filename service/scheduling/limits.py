"""Admission limits: concurrent work in threads, queue length, memory. Excess requests get 503."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import anyio

from service.contract.problems import Problem
from service.operations.request_context import current_context

# The most of a budget that one client holds while no other holds any.
CLIENT_SHARE: Final = 0.75

P = ParamSpec("P")
T = TypeVar("T")

# Long enough for a queue to drain a little, short enough for a person who is waiting.
RETRY_SOON: Final = {"Retry-After": "1"}


class ConcurrencyLimiter:
    """Runs at most `limit` calls at a time in worker threads. Further calls wait up to `timeout` seconds.

    A caller that is cancelled leaves at once. Its call, if it has started, keeps its thread until it ends.
    """

    def __init__(self, limit: int, timeout: float) -> None:
        self.limit = limit
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="decoding")
        self._places = WaitingBudget(limit, timeout)
        self._started: dict[Future[Any], float] = {}

    async def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call `function` in a thread. Raises Problem `overloaded` when no thread becomes free in time."""
        place = await self._places.acquire(1)
        loop = asyncio.get_running_loop()
        call: Future[T] = self._threads.submit(copy_context().run, partial(function, *arguments, **named))
        self._started[call] = time.monotonic()

        def end(call: Future[T]) -> None:
            self._started.pop(call, None)
            # The loop is closed when the server has stopped.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._places.release, place)

        call.add_done_callback(end)
        return await asyncio.wrap_future(call)

    def ages(self) -> list[float]:
        """Return for how many seconds each call in progress has been running."""
        now = time.monotonic()
        return [now - start for start in list(self._started.values())]


@dataclass(eq=False)
class Claim:
    """The units that a caller has of a `WaitingBudget`, or waits for."""

    client: str
    count: int
    turn: asyncio.Future[None] | None = None


class WaitingBudget:
    """A budget of `capacity` units for which callers wait up to `timeout` seconds. Use it in one event loop.

    The next one is the first caller of the client (`RequestContext.client`) that holds the least, so that none waits
    for all pictures of another.
    """

    def __init__(self, capacity: int, timeout: float) -> None:
        self.capacity = capacity
        self.timeout = timeout
        self.used = 0
        self._waiting: list[Claim] = []
        self._held: Counter[str] = Counter()

    @asynccontextmanager
    async def reserve(self, count: int) -> AsyncIterator[None]:
        """Hold `count` units, at most `capacity`, until the end of the `with` block.

        Raises Problem `overloaded` when they do not become free in time.
        """
        claim = await self.acquire(count)
        try:
            yield
        finally:
            self.release(claim)

    async def hold(self, count: int, start: Callable[[Callable[[], T]], Awaitable[T]], work: Callable[[], T]) -> T:
        """Hold `count` units while `work` runs in a thread, to its end even if this caller is cancelled before.

        `start` runs a function in a thread and returns its result. Raises as `reserve` does.
        """
        claim = await self.acquire(count)
        loop, lock = asyncio.get_running_loop(), threading.Lock()
        started = abandoned = False

        def held() -> T:
            nonlocal started
            with lock:
                if abandoned:
                    raise RuntimeError("the caller has left")
                started = True
            try:
                return work()
            finally:
                # The loop is closed when the server has stopped.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self.release, claim)

        try:
            return await start(held)
        finally:
            with lock:
                abandoned = not started
            if abandoned:
                self.release(claim)

    async def acquire(self, count: int) -> Claim:
        """Take `count` units, to be given back by `release`. Raises as `reserve` does."""
        assert count <= self.capacity
        claim = Claim(current_context().client, count)
        if not self._waiting and self.used + count <= self.capacity:
            self._grant(claim)
            return claim
        claim.turn = asyncio.get_running_loop().create_future()
        self._waiting.append(claim)
        try:
            with anyio.fail_after(self.timeout):
                await claim.turn
        except BaseException as error:
            if claim in self._waiting:
                self._waiting.remove(claim)
                self._admit()
            else:
                # The units came at the same moment.
                self.release(claim)
            if isinstance(error, TimeoutError):
                raise queue_timeout(self.timeout) from None
            raise
        return claim

    def release(self, claim: Claim) -> None:
        """Give a claim's units back."""
        self.used -= claim.count
        self._held[claim.client] -= claim.count
        if not self._held[claim.client]:
            del self._held[claim.client]
        self._admit()

    def _grant(self, claim: Claim) -> None:
        self.used += claim.count
        self._held[claim.client] += claim.count

    def _admit(self) -> None:
        while self._waiting:
            claim = min(self._waiting, key=lambda waiting: self._held[waiting.client])
            if self.used + claim.count > self.capacity:
                # A small one behind it does not pass, or it would wait forever.
                return
            self._waiting.remove(claim)
            self._grant(claim)
            if claim.turn is not None and not claim.turn.done():
                claim.turn.set_result(None)


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
                    RETRY_SOON,
                )
            share = CLIENT_SHARE * (self.capacity - self.used + holding.units)
            if more and holding.reservations > 1 and holding.units + more > share:
                raise Problem(
                    "overloaded",
                    f"your other requests hold {holding.units:,} of {self.capacity:,} {self.unit}, and the rest is "
                    "for other clients; try again later, with fewer requests at a time",
                    RETRY_SOON,
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
        "overloaded",
        f"the service could not start on this request within {seconds:g} seconds; try again later",
        RETRY_SOON,
    )

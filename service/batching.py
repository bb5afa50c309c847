"""Inferences, a few at a time; pictures that wait while all lanes are busy go together into the next one.

Where pictures don't go together, one may as well go all its way in its lane's thread, decoding included: that saves the
changes of threads in between (`Batcher.call`).

No picture waits for others to come: a free lane starts with what is there. docs/decisions/0002-batching.md says why
it is done here and not by BentoML's batcher.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import ProtoServeError
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Outputs
from service import metrics
from service.record import RequestRecord, current_record
from service.turns import no_turn

T = TypeVar("T")


@dataclass(frozen=True)
class _Picture:
    """What goes through the engine, with others of its model: uint8 RGB [height, width, 3]."""

    classifier: Classifier
    image: NDArray[np.uint8]


@dataclass(eq=False)
class _Waiting:
    """Somebody's turn: a picture for the engine, or a call that has its lane to itself."""

    work: _Picture | Callable[[], Any]
    answer: asyncio.Future[Any]
    record: RequestRecord
    since: float
    started: bool = False


class Batcher:
    """Runs pictures through their model in at most `lanes` threads, up to `most` of them in one inference.

    Asked from an event loop. A lane's thread takes what waits by itself, so that it is not idle while the loop has
    other things to do. A picture that can't be computed fails alone: when an inference of several fails, each is run
    by itself.
    """

    def __init__(self, lanes: int, most: int, seconds: float) -> None:
        self.most = most
        self.seconds = seconds
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="inference")
        # Over what follows, and over every `started`.
        self._lock = threading.Lock()
        self._idle = lanes
        self._waiting: deque[_Waiting] = deque()

    async def run(self, classifier: Classifier, image: NDArray[np.uint8]) -> Outputs:
        """The graph's answer for one picture, uint8 RGB [height, width, 3] at model size.

        Raises Problem `overloaded` when its turn does not come in time, and what the engine raises. When the caller
        is cancelled, a picture that still waits is dropped.
        """
        outputs: Outputs = await self._turn(_Picture(classifier, image))
        return outputs

    async def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, called in a lane's thread with the caller's context variables.

        Raises Problem `overloaded` when its turn does not come in time, and what it raises. When the caller is
        cancelled, a call that still waits is dropped, and one that has begun goes on unheard.
        """
        result: T = await self._turn(partial(copy_context().run, function))
        return result

    async def _turn(self, work: _Picture | Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        item = _Waiting(work, loop.create_future(), current_record(), time.perf_counter())
        metrics.QUEUED.inc()
        with self._lock:
            self._waiting.append(item)
            if self._idle:
                # Taken here and now, so that what comes in the same moment finds the other lanes.
                self._idle -= 1
                self._threads.submit(self._lane, self._next())
        too_late = loop.call_later(self.seconds, self._give_up, item)
        try:
            return await item.answer
        finally:
            too_late.cancel()
            self._drop(item)

    def _give_up(self, item: _Waiting) -> None:
        # Whoever has just been cancelled waits for nothing.
        if self._drop(item) and not item.answer.done():
            item.answer.set_exception(no_turn(self.seconds))

    def _drop(self, item: _Waiting) -> bool:
        """Take it out of those that wait; False when it has begun."""
        with self._lock:
            if item.started:
                return False
            # Marked as begun, so that nobody drops it again.
            item.started = True
            self._waiting.remove(item)
        metrics.QUEUED.dec()
        return True

    def _lane(self, batch: list[_Waiting]) -> None:
        """In a lane's thread: a batch, and then what waits by then."""
        while batch:
            now = time.perf_counter()
            for item in batch:
                metrics.QUEUED.dec()
                item.record.took("queue", now - item.since)
            _answer(batch)
            with self._lock:
                batch = self._next()
                if not batch:
                    self._idle += 1

    def _next(self) -> list[_Waiting]:
        """The pictures that wait longest, as many as fit together: those of one model. Under the lock."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self.most and (not batch or _together(batch[0], self._waiting[0])):
            item = self._waiting.popleft()
            item.started = True
            batch.append(item)
        return batch


def _together(one: _Waiting, other: _Waiting) -> bool:
    mine, its = one.work, other.work
    return isinstance(mine, _Picture) and isinstance(its, _Picture) and mine.classifier is its.classifier


def _answer(batch: list[_Waiting]) -> None:
    """Do the work of a batch in this thread, and tell those who wait what became of it."""
    metrics.BATCH_SIZE.observe(len(batch))
    try:
        results = _results(batch)
    except Exception as error:  # noqa: BLE001 - whatever it is goes to who asked
        if len(batch) > 1 and isinstance(error, ProtoServeError):
            for item in batch:
                _answer([item])
            return
        for item in batch:
            _tell(item, asyncio.Future.set_exception, error)
    else:
        for item, result in zip(batch, results, strict=True):
            _tell(item, asyncio.Future.set_result, result)


def _results(batch: list[_Waiting]) -> list[Any]:
    first = batch[0].work
    if not isinstance(first, _Picture):
        return [first()]
    start = time.perf_counter()
    outputs = first.classifier.engine.run(
        np.stack([item.work.image for item in batch if isinstance(item.work, _Picture)])
    )
    seconds = time.perf_counter() - start
    for item in batch:
        item.record.took("infer", seconds)
    return [outputs.rows(number, number + 1) for number in range(len(batch))]


def _tell(item: _Waiting, how: Callable[[asyncio.Future[Any], Any], None], what: Any) -> None:
    def tell() -> None:
        if not item.answer.done():
            how(item.answer, what)

    # A loop that has ended has nobody who waits.
    with suppress(RuntimeError):
        item.answer.get_loop().call_soon_threadsafe(tell)

"""Dynamic batching: images that wait while all inference threads are busy share the next inference.

No image waits for others to arrive: an idle thread starts at once with the images in the queue. Where images are not
batched, a thread may also run a whole request, decoding included, which saves switches between threads
(`Batcher.call`). docs/decisions/0002-batching.md says why BentoML's batcher does not do this.
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
from protoserve.inference.options import ResolvedOptions
from service.operations import metrics
from service.operations.request_context import RequestContext, current_context
from service.scheduling.limits import queue_timeout

T = TypeVar("T")


@dataclass(frozen=True)
class _ImageJob:
    """An image for the engine, uint8 RGB [height, width, 3], and its options. Jobs of the same model can share a
    batch."""

    classifier: Classifier
    image: NDArray[np.uint8]
    options: ResolvedOptions


@dataclass(eq=False)
class _QueueEntry:
    """A job in the queue: an image, or a call that occupies a thread alone."""

    job: _ImageJob | Callable[[], Any]
    answer: asyncio.Future[Any]
    context: RequestContext
    client: str
    queued_at: float
    started: bool = False


class Batcher:
    """Runs images through their model in `threads` threads, up to `max_batch` images per inference.

    Callers are coroutines of an event loop. A thread takes its next batch from the queue itself, so that it does not
    idle while the loop is busy. When an inference of several images fails, each image is run again alone, so that only
    the bad one fails. A job that is still queued after `timeout` seconds fails.
    """

    def __init__(self, threads: int, max_batch: int, timeout: float) -> None:
        self.threads = threads
        self.max_batch = max_batch
        self.timeout = timeout
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="inference")
        # Guards the idle count, the queue and the `started` flag of every entry.
        self._lock = threading.Lock()
        self._idle_threads = threads
        self._queue: deque[_QueueEntry] = deque()
        # When each client in the queue was last served, as a count of entries taken.
        self._served: dict[str, int] = {}
        self._taken = 0
        # When each thread started what it is running.
        self._started: dict[int, float] = {}

    async def run(self, classifier: Classifier, image: NDArray[np.uint8], options: ResolvedOptions) -> Outputs:
        """Return the graph's outputs for one image, uint8 RGB [height, width, 3] at model size; see
        `Classifier.outputs` for the `options`.

        Raises Problem `overloaded` when the image waits too long, and the engine's errors. Cancelling the caller
        removes an image that is still queued.
        """
        outputs: Outputs = await self._enqueue(_ImageJob(classifier, image, options))
        return outputs

    async def call(self, function: Callable[[], T]) -> T:
        """Call `function` in an inference thread, with the caller's context variables, and return its result.

        Raises Problem `overloaded` when the call waits too long, and the function's errors. Cancelling the caller
        removes a call that is still queued; a call that has started runs to its end and its result is discarded.
        """
        result: T = await self._enqueue(partial(copy_context().run, function))
        return result

    def ages(self) -> list[float]:
        """Return for how many seconds each inference in progress has been running."""
        now = time.monotonic()
        return [now - start for start in list(self._started.values())]

    async def _enqueue(self, job: _ImageJob | Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        context = current_context()
        entry = _QueueEntry(job, loop.create_future(), context, context.client, time.perf_counter())
        metrics.QUEUED.inc()
        with self._lock:
            self._queue.append(entry)
            if self._idle_threads:
                # Take the batch here, not in the thread, so that entries that follow at once find the other threads.
                self._idle_threads -= 1
                self._pool.submit(self._work, self._next_batch())
        timer = loop.call_later(self.timeout, self._time_out, entry)
        try:
            return await entry.answer
        finally:
            timer.cancel()
            self._withdraw(entry)

    def _time_out(self, entry: _QueueEntry) -> None:
        # The answer is done already when the caller has just been cancelled.
        if self._withdraw(entry) and not entry.answer.done():
            entry.answer.set_exception(queue_timeout(self.timeout))

    def _withdraw(self, entry: _QueueEntry) -> bool:
        """Remove an entry from the queue. Returns False when a thread has started it."""
        with self._lock:
            if entry.started:
                return False
            # Prevents a second removal.
            entry.started = True
            self._queue.remove(entry)
        metrics.QUEUED.dec()
        return True

    def _work(self, batch: list[_QueueEntry]) -> None:
        """Run batches in an inference thread until the queue is empty."""
        while batch:
            now = time.perf_counter()
            for entry in batch:
                metrics.QUEUED.dec()
                entry.context.add_stage_seconds("queue", now - entry.queued_at)
            thread = threading.get_ident()
            self._started[thread] = time.monotonic()
            _answer(batch)
            self._started.pop(thread)
            with self._lock:
                batch = self._next_batch()
                if not batch:
                    self._idle_threads += 1

    def _next_batch(self) -> list[_QueueEntry]:
        """Take the next entries that can share an inference. The caller holds the lock."""
        batch: list[_QueueEntry] = []
        while self._queue and len(batch) < self.max_batch:
            entry = self._next_entry()
            if batch and not _can_share(batch[0], entry):
                break
            self._queue.remove(entry)
            self._taken += 1
            self._served[entry.client] = self._taken
            entry.started = True
            batch.append(entry)
        if len(self._served) > len(self._queue):
            waiting = {entry.client for entry in self._queue}
            self._served = {client: turn for client, turn in self._served.items() if client in waiting}
        return batch

    def _next_entry(self) -> _QueueEntry:
        """Return the oldest entry of the client that was served the longest ago. Clients take turns, so that none waits
        for all images of another."""
        return min(self._queue, key=lambda entry: self._served.get(entry.client, 0))


def _can_share(first: _QueueEntry, second: _QueueEntry) -> bool:
    return (
        isinstance(first.job, _ImageJob)
        and isinstance(second.job, _ImageJob)
        and first.job.classifier is second.job.classifier
    )


def _answer(batch: list[_QueueEntry]) -> None:
    """Run a batch in this thread and give each entry its result or its error."""
    metrics.BATCH_SIZE.observe(len(batch))
    try:
        results = _run_batch(batch)
    except Exception as error:  # noqa: BLE001 - the caller gets it
        if len(batch) > 1 and isinstance(error, ProtoServeError):
            for entry in batch:
                _answer([entry])
            return
        for entry in batch:
            _resolve(entry, asyncio.Future.set_exception, error)
    else:
        for entry, result in zip(batch, results, strict=True):
            _resolve(entry, asyncio.Future.set_result, result)


def _run_batch(batch: list[_QueueEntry]) -> list[Any]:
    first = batch[0].job
    if not isinstance(first, _ImageJob):
        return [first()]
    start = time.perf_counter()
    jobs = [entry.job for entry in batch if isinstance(entry.job, _ImageJob)]
    outputs = first.classifier.outputs(np.stack([job.image for job in jobs]), [job.options for job in jobs])
    seconds = time.perf_counter() - start
    for entry in batch:
        entry.context.add_stage_seconds("infer", seconds)
    return [outputs.rows(index, index + 1) for index in range(len(batch))]


def _resolve(entry: _QueueEntry, setter: Callable[[asyncio.Future[Any], Any], None], value: Any) -> None:
    def set_answer() -> None:
        if not entry.answer.done():
            setter(entry.answer, value)

    # The loop is closed when the server has stopped; then nobody waits for the answer.
    with suppress(RuntimeError):
        entry.answer.get_loop().call_soon_threadsafe(set_answer)

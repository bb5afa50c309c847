"""Inferences, a few at a time; pictures that wait while all lanes are busy go together into the next one.

No picture waits for others to come: a free lane starts with what is there. docs/decisions/0002-batching.md says why
it is done here and not by BentoML's batcher.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protoserve.classifier import Classifier
from protoserve.engine import Outputs
from protoserve.errors import ProtoServeError
from service import metrics
from service.record import RequestRecord, current_record
from service.turns import no_turn


@dataclass(eq=False)
class _Waiting:
    """A picture on its way through the engine: uint8 RGB [height, width, 3]."""

    classifier: Classifier
    image: NDArray[np.uint8]
    answer: asyncio.Future[Outputs]
    record: RequestRecord
    since: float
    started: bool = False


class Batcher:
    """Runs pictures through their model in at most `lanes` threads, up to `most` of them in one inference.

    Used from one event loop. A picture that can't be computed fails alone: when an inference of several fails,
    each is run by itself.
    """

    def __init__(self, lanes: int, most: int, seconds: float) -> None:
        self.most = most
        self.seconds = seconds
        self._idle = lanes
        self._threads = ThreadPoolExecutor(lanes, thread_name_prefix="inference")
        self._waiting: deque[_Waiting] = deque()
        # The event loop holds tasks only weakly.
        self._lanes: set[asyncio.Task[None]] = set()

    async def run(self, classifier: Classifier, image: NDArray[np.uint8]) -> Outputs:
        """The graph's answer for one picture, uint8 RGB [height, width, 3] at model size.

        Raises Problem `overloaded` when its turn does not come in time, and what the engine raises. When the caller
        is cancelled, a picture that still waits is dropped.
        """
        loop = asyncio.get_running_loop()
        item = _Waiting(classifier, image, loop.create_future(), current_record(), time.perf_counter())
        self._waiting.append(item)
        metrics.QUEUED.inc()
        if self._idle:
            # Taken here and now, so that what comes in the same moment finds the other lanes.
            self._idle -= 1
            lane = loop.create_task(self._lane(self._next()))
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        too_late = loop.call_later(self.seconds, self._give_up, item)
        try:
            return await item.answer
        finally:
            too_late.cancel()
            if not item.started and item in self._waiting:
                self._waiting.remove(item)
                metrics.QUEUED.dec()

    def _give_up(self, item: _Waiting) -> None:
        if not item.started and not item.answer.done():
            item.answer.set_exception(no_turn(self.seconds))

    async def _lane(self, batch: list[_Waiting]) -> None:
        try:
            while batch:
                await self._answer(batch)
                batch = self._next()
        finally:
            self._idle += 1

    def _next(self) -> list[_Waiting]:
        """The pictures that wait longest, as many as fit together: those of one model."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self.most:
            first = self._waiting[0]
            if batch and first.classifier is not batch[0].classifier:
                break
            self._waiting.popleft()
            metrics.QUEUED.dec()
            if first.answer.done():
                continue
            first.started = True
            first.record.took("queue", time.perf_counter() - first.since)
            batch.append(first)
        return batch

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        metrics.BATCH_SIZE.observe(len(batch))
        job = asyncio.get_running_loop().run_in_executor(self._threads, _infer, batch)
        await asyncio.wait([job])
        error = job.exception()
        if error is None:
            for number, item in enumerate(batch):
                if not item.answer.done():
                    item.answer.set_result(job.result().rows(number, number + 1))
        elif len(batch) > 1 and isinstance(error, ProtoServeError):
            for item in batch:
                await self._answer([item])
        else:
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)


def _infer(batch: Sequence[_Waiting]) -> Outputs:
    start = time.perf_counter()
    outputs = batch[0].classifier.engine.run(np.stack([item.image for item in batch]))
    seconds = time.perf_counter() - start
    for item in batch:
        item.record.took("infer", seconds)
    return outputs

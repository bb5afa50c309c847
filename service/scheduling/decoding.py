"""Decoding within a worker's memory and time: small pictures in threads, all others in processes that can be killed.

The headers tell what a picture takes at most. Where that is little, a thread decodes it, which can't be interrupted but
ends soon. Anything larger, or of a format whose decoder has limits that we don't know, goes to a process.
docs/decisions/0004-decoding.md gives the reasons and the figures.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import anyio
import anyio.to_process

from protoserve.cores import resident_memory, usable_cores
from protoserve.errors import ImageError
from protoserve.images.decoding import DecodingCost, Limits, decoding_cost
from protoserve.images.fitting import FittedImage
from protoserve.images.geometry import InputRule
from service.contract.problems import Problem
from service.scheduling.isolation import fit_within
from service.scheduling.limits import RETRY_SOON, ConcurrencyLimiter, WaitingBudget
from service.settings import THREAD_MEMORY, Settings

T = TypeVar("T")

_LOG = logging.getLogger("protoserve.service")

# The bound, for a slow core, of what a thread may decode; the real time is about a third. With `THREAD_MEMORY`, that is
# an ordinary photograph of up to about 16 megapixels.
THREAD_SECONDS: Final = 1.0
# Bodies up to this size are parsed and their headers read in the event loop: at most a few milliseconds.
LOOP_BYTES: Final = 256_000
_PROCESSES: Final = 8
_TWO_PHOTOGRAPHS: Final = 150_000_000
# A picture is refused outright where its bound exceeds the time limit by this factor.
_TOLERANCE: Final = 2.0


@dataclass(frozen=True)
class Upload:
    """An encoded picture and what decoding it takes at most."""

    data: bytes
    cost: DecodingCost

    @property
    def is_small(self) -> bool:
        """Whether a thread may decode it."""
        return self.cost.bounded and self.cost.memory <= THREAD_MEMORY and self.cost.seconds <= THREAD_SECONDS


class Decoder:
    """Decodes pictures to model size within the settings' budgets of memory, time and concurrency.

    Use it in one event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = Limits(bytes=settings.max_bytes, pixels=settings.max_pixels, side=settings.max_side)
        self.threads = ConcurrencyLimiter(usable_cores(), settings.wait_seconds)
        # The model is loaded by now.
        budget = settings.decoding_budget(worker=resident_memory())
        _LOG.info("memory for decoding", extra={"bytes": budget})
        threads = _share_of_threads(budget)
        self._thread_memory = WaitingBudget(threads, settings.wait_seconds)
        self._process_memory = WaitingBudget(budget - threads, settings.wait_seconds)
        # At least two, so that one slow picture does not hold up all others.
        self._processes = WaitingBudget(max(2, min(usable_cores(), _PROCESSES)), settings.wait_seconds)
        self._limiter: anyio.CapacityLimiter | None = None

    def examine(self, rule: InputRule, data: bytes) -> Upload:
        """Read a picture's headers; `rule` is that of its model.

        Raises ImageError as `decode` does, and `image_too_large` for a picture that would take more memory or time than
        this service has for any.
        """
        settings = self.settings
        draft_for = rule if settings.jpeg_draft else None
        cost = decoding_cost(data, limits=self.limits, formats=settings.formats, draft_for=draft_for)
        memory = _in_a_process(cost, data)
        if memory > self._process_memory.capacity:
            raise ImageError(
                f"the image takes up to {memory:,} bytes of memory to decode, more than the "
                f"{self._process_memory.capacity:,} allowed; send a smaller one, or a baseline JPEG",
                "image_too_large",
            )
        if cost.seconds > _TOLERANCE * settings.decode_seconds:
            raise ImageError(
                f"the image takes up to {cost.seconds:.0f} seconds to decode, and {settings.decode_seconds:g} are "
                "allowed; send a smaller one, or a baseline JPEG",
                "image_too_large",
            )
        return Upload(data, cost)

    async def fit(self, rule: InputRule, upload: Upload, fit_here: Callable[[bytes], FittedImage]) -> FittedImage:
        """Decode a picture and resize it to model size; `fit_here` does so in a thread, where the picture is small.

        Cancelling the caller ends a process at once; a thread finishes its picture.

        Raises ImageError, OutOfMemoryError, and Problem `overloaded` or `answer_timeout`.
        """
        if not upload.is_small:
            return await self._fit_in_process(rule, upload)
        return await self.in_thread(upload, self.threads.run, lambda: fit_here(upload.data))

    async def in_thread(
        self, upload: Upload, start: Callable[[Callable[[], T]], Awaitable[T]], work: Callable[[], T]
    ) -> T:
        """Do work that decodes a small picture in a thread, by `start`, within the memory for all threads."""
        return await self._thread_memory.hold(upload.cost.memory, start, work)

    async def _fit_in_process(self, rule: InputRule, upload: Upload) -> FittedImage:
        settings, cost = self.settings, upload.cost
        memory = _in_a_process(cost, upload.data)
        async with self._process_memory.reserve(memory), self._processes.reserve(1):
            if self._limiter is None:
                # The budget above limits the processes, with a time limit for the wait.
                self._limiter = anyio.CapacityLimiter(self._processes.capacity)
            try:
                with anyio.move_on_after(settings.decode_seconds):
                    return await anyio.to_process.run_sync(
                        fit_within,
                        upload.data,
                        rule,
                        self.limits,
                        settings.formats,
                        settings.jpeg_draft,
                        memory,
                        settings.decode_seconds,
                        cancellable=True,
                        limiter=self._limiter,
                    )
            except (anyio.BrokenWorkerProcess, OSError):
                raise Problem(
                    "overloaded", "the process that decoded this image was stopped; try again later", RETRY_SOON
                ) from None
        raise Problem(
            "answer_timeout",
            f"decoding the image took more than {settings.decode_seconds:g} seconds; send a smaller or simpler one",
        )


def _share_of_threads(budget: int) -> int:
    """The part of the memory for decoding that is kept for small pictures, at least `THREAD_MEMORY`.

    In a small container it holds two photographs at a time, and the rest one of 50 megapixels. More is shared equally.
    """
    photographs = min(_TWO_PHOTOGRAPHS, budget - 3 * THREAD_MEMORY)
    return max(THREAD_MEMORY, photographs) + max(0, budget - 5 * THREAD_MEMORY) // 2


def _in_a_process(cost: DecodingCost, data: bytes) -> int:
    """The memory that a picture takes in a process: its bytes are in the message to it and there once more."""
    return cost.memory + 2 * len(data)


def hide_main_module() -> None:
    """Keep decoding processes from importing the program that started this one.

    anyio gives each process the file of `__main__`, for functions that are defined there. Ours are not, and BentoML's
    program takes a second and 100 MB to import.
    """
    sys.modules["__main__"].__dict__.pop("__file__", None)

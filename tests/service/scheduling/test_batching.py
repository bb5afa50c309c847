"""Batching: each image gets its own outputs, and a failure of one does not affect the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protoserve.errors import DeviceError
from protoserve.inference.classifier import Classifier
from protoserve.inference.engine import Outputs
from protoserve.inference.options import ResolvedOptions
from service.contract.problems import Problem
from service.operations.request_context import RequestContext, bind_context
from service.scheduling.batching import Batcher

Picture = NDArray[np.uint8]
OPTIONS = ResolvedOptions(top_k=1, alternatives=0, maps=False)


class Watched:
    """A real engine that notes its batch sizes, waits for a gate, and fails for images whose first value is 255."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, images: Picture) -> Outputs:
        self.sizes.append(len(images))
        assert self.gate.wait(30)
        if (images[:, 0, 0, 0] == 255).any():
            raise DeviceError("out of memory")
        outputs: Outputs = self.engine.run(images)
        return outputs


@pytest.fixture
def watched(classifier: Classifier) -> Classifier:
    copy = Classifier(classifier.bundle, classifier.engine)
    copy.engine = Watched(classifier.engine)  # type: ignore[assignment]
    return copy


@pytest.fixture
def pictures(classifier: Classifier) -> list[Picture]:
    rule = classifier.bundle.input
    drawn = np.random.default_rng(0).integers(0, 250, (9, rule.height, rule.width, 3), dtype=np.uint8)
    return list(drawn)


def same(first: Outputs, second: Outputs) -> bool:
    # The order of summation may depend on the batch size.
    return len(first) == len(second) == 1 and np.allclose(first.log_probability, second.log_probability, atol=1e-5)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def engine_of(classifier: Classifier) -> Watched:
    assert isinstance(classifier.engine, Watched)
    return classifier.engine


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_queued_images_share_an_inference_and_each_gets_its_own_outputs(
    watched: Classifier, pictures: list[Picture]
) -> None:
    alone = [watched.engine.run(picture[None]) for picture in pictures]
    engine = engine_of(watched)
    engine.sizes.clear()

    async def work() -> None:
        batcher = Batcher(threads=1, max_batch=4, timeout=30)
        engine.gate.clear()
        asked = [asyncio.create_task(batcher.run(watched, picture, OPTIONS)) for picture in pictures]
        # The first image starts at once, alone.
        await until(lambda: engine.sizes == [1])
        engine.gate.set()
        answers = await asyncio.gather(*asked)
        assert all(map(same, answers, alone))
        assert engine.sizes == [1, 4, 4]

    run(work)


def test_a_bad_image_among_good_ones_fails_alone(watched: Classifier, pictures: list[Picture]) -> None:
    alone = [watched.engine.run(picture[None]) for picture in pictures]
    engine = engine_of(watched)
    engine.sizes.clear()

    async def work() -> None:
        batcher = Batcher(threads=1, max_batch=16, timeout=30)
        engine.gate.clear()
        blocker = asyncio.create_task(batcher.run(watched, pictures[0], OPTIONS))
        await until(lambda: engine.sizes == [1])
        bad = pictures[1].copy()
        bad[0, 0, 0] = 255
        asked = [
            asyncio.create_task(batcher.run(watched, picture, OPTIONS))
            for picture in [*pictures[1:4], bad, *pictures[4:]]
        ]
        await asyncio.sleep(0)
        engine.gate.set()
        await blocker
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers.pop(3), DeviceError)
        assert all(isinstance(answer, Outputs) for answer in answers)
        assert all(map(same, answers, alone[1:]))  # type: ignore[arg-type]
        assert engine.sizes[1] == 9

    run(work)


def test_a_call_runs_alone_with_the_context_of_its_caller(watched: Classifier, pictures: list[Picture]) -> None:
    engine = engine_of(watched)
    caller: ContextVar[str] = ContextVar("caller")

    async def ask(batcher: Batcher, name: str) -> tuple[str, str, list[int]]:
        caller.set(name)
        return await batcher.call(lambda: (caller.get(), threading.current_thread().name, [*engine.sizes]))

    async def work() -> None:
        batcher = Batcher(threads=1, max_batch=8, timeout=30)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0], OPTIONS))
        await until(lambda: engine.sizes == [1])
        two = [asyncio.create_task(batcher.run(watched, picture, OPTIONS)) for picture in pictures[1:3]]
        await asyncio.sleep(0)
        called = [asyncio.create_task(ask(batcher, name)) for name in ("first", "second")]
        await asyncio.sleep(0)
        last = asyncio.create_task(batcher.run(watched, pictures[3], OPTIONS))
        await asyncio.sleep(0)
        engine.gate.set()
        for name, (seen, thread, sizes) in zip(("first", "second"), await asyncio.gather(*called), strict=True):
            assert seen == name
            assert thread.startswith("inference")
            # In order of arrival: the images before the call have been computed, the one after it has not.
            assert sizes == [1, 2]
        await asyncio.gather(first, *two, last)
        assert engine.sizes == [1, 2, 1]
        with pytest.raises(ZeroDivisionError):
            await batcher.call(lambda: 1 // 0)

    run(work)


def test_an_image_that_waits_too_long_is_refused_and_never_computed(
    watched: Classifier, pictures: list[Picture]
) -> None:
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(threads=1, max_batch=4, timeout=0.05)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0], OPTIONS))
        await until(lambda: engine.sizes == [1])
        with pytest.raises(Problem) as raised:
            await batcher.run(watched, pictures[1], OPTIONS)
        assert (raised.value.code, raised.value.headers) == ("overloaded", {"Retry-After": "1"})
        engine.gate.set()
        # The time limit does not apply to an image that has started.
        assert len(await first) == 1
        assert engine.sizes == [1]

    run(work)


def test_a_cancelled_caller_costs_no_inference(watched: Classifier, pictures: list[Picture]) -> None:
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(threads=1, max_batch=1, timeout=30)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0], OPTIONS))
        await until(lambda: engine.sizes == [1])
        cancelled = asyncio.create_task(batcher.run(watched, pictures[1], OPTIONS))
        stays = asyncio.create_task(batcher.run(watched, pictures[2], OPTIONS))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, stays)
        assert engine.sizes == [1, 1]
        assert cancelled.cancelled()

    run(work)


def test_two_models_never_share_an_inference(
    watched: Classifier, classifier: Classifier, pictures: list[Picture]
) -> None:
    other = Classifier(classifier.bundle, classifier.engine)
    other.engine = Watched(classifier.engine)  # type: ignore[assignment]
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(threads=1, max_batch=8, timeout=30)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0], OPTIONS))
        await until(lambda: engine.sizes == [1])
        models = [watched, watched, other, other, watched]
        asked = [
            asyncio.create_task(batcher.run(model, picture, OPTIONS))
            for model, picture in zip(models, pictures, strict=False)
        ]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *asked)
        assert (engine.sizes, engine_of(other).sizes) == ([1, 2, 1], [2])

    run(work)


def test_threads_run_inferences_concurrently(watched: Classifier, pictures: list[Picture]) -> None:
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(threads=3, max_batch=8, timeout=30)
        engine.gate.clear()
        asked = [asyncio.create_task(batcher.run(watched, picture, OPTIONS)) for picture in pictures[:3]]
        await until(lambda: engine.sizes == [1, 1, 1])
        engine.gate.set()
        await asyncio.gather(*asked)

    run(work)


def test_clients_take_turns() -> None:
    order: list[str] = []
    gate = threading.Event()

    async def work() -> None:
        batcher = Batcher(threads=1, max_batch=1, timeout=30)

        def ask(client: str, number: int) -> asyncio.Task[None]:
            with bind_context(RequestContext("r", key=client)):
                return asyncio.create_task(batcher.call(lambda: order.append(f"{client}{number}")))

        blocker = asyncio.create_task(batcher.call(lambda: gate.wait(30)))
        await asyncio.sleep(0)
        asked = [ask("a", number) for number in range(5)] + [ask("b", number) for number in range(2)] + [ask("c", 0)]
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(blocker, *asked)
        assert not batcher._queue and not batcher._served

    run(work)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]

"""Inferences of several pictures: each gets its own answer, what is wrong with one leaves the others alone."""

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
from service.batching import Batcher
from service.problems import Problem
from service.turns import Places, Turns

Picture = NDArray[np.uint8]


class Watched:
    """A real engine that keeps the sizes of its batches, waits for a gate, and refuses pictures that begin with 255."""

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
        found: Outputs = self.engine.run(images)
        return found


@pytest.fixture
def watched(classifier: Classifier) -> Classifier:
    copy = Classifier(classifier.bundle, classifier.engine)
    copy.engine = Watched(classifier.engine)  # type: ignore[assignment]
    return copy


@pytest.fixture
def pictures(classifier: Classifier) -> list[Picture]:
    rule = classifier.bundle.manifest.input
    drawn = np.random.default_rng(0).integers(0, 250, (9, rule.height, rule.width, 3), dtype=np.uint8)
    return list(drawn)


def same(one: Outputs, other: Outputs) -> bool:
    # Batches of another size may be summed in another order.
    return len(one) == len(other) == 1 and np.allclose(one.log_probability, other.log_probability, atol=1e-5)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def engine_of(classifier: Classifier) -> Watched:
    assert isinstance(classifier.engine, Watched)
    return classifier.engine


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_pictures_that_wait_go_together_and_each_gets_its_own_answer(
    watched: Classifier, pictures: list[Picture]
) -> None:
    alone = [watched.engine.run(picture[None]) for picture in pictures]
    engine = engine_of(watched)
    engine.sizes.clear()

    async def work() -> None:
        batcher = Batcher(lanes=1, most=4, seconds=30)
        engine.gate.clear()
        asked = [asyncio.create_task(batcher.run(watched, picture)) for picture in pictures]
        # The first does not wait for the others.
        await until(lambda: engine.sizes == [1])
        engine.gate.set()
        answers = await asyncio.gather(*asked)
        assert all(map(same, answers, alone))
        assert engine.sizes == [1, 4, 4]

    run(work)


def test_a_bad_picture_among_good_ones_fails_alone(watched: Classifier, pictures: list[Picture]) -> None:
    alone = [watched.engine.run(picture[None]) for picture in pictures]
    engine = engine_of(watched)
    engine.sizes.clear()

    async def work() -> None:
        batcher = Batcher(lanes=1, most=16, seconds=30)
        engine.gate.clear()
        blocker = asyncio.create_task(batcher.run(watched, pictures[0]))
        await until(lambda: engine.sizes == [1])
        bad = pictures[1].copy()
        bad[0, 0, 0] = 255
        asked = [asyncio.create_task(batcher.run(watched, picture)) for picture in [*pictures[1:4], bad, *pictures[4:]]]
        await asyncio.sleep(0)
        engine.gate.set()
        await blocker
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers.pop(3), DeviceError)
        assert all(isinstance(answer, Outputs) for answer in answers)
        assert all(map(same, answers, alone[1:]))  # type: ignore[arg-type]
        assert engine.sizes[1] == 9

    run(work)


def test_a_call_has_a_lane_to_itself_and_its_callers_context(watched: Classifier, pictures: list[Picture]) -> None:
    engine = engine_of(watched)
    who: ContextVar[str] = ContextVar("who")

    async def ask(batcher: Batcher, name: str) -> tuple[str, str, list[int]]:
        who.set(name)
        return await batcher.call(lambda: (who.get(), threading.current_thread().name, [*engine.sizes]))

    async def work() -> None:
        batcher = Batcher(lanes=1, most=8, seconds=30)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0]))
        await until(lambda: engine.sizes == [1])
        two = [asyncio.create_task(batcher.run(watched, picture)) for picture in pictures[1:3]]
        await asyncio.sleep(0)
        called = [asyncio.create_task(ask(batcher, name)) for name in ("one", "other")]
        await asyncio.sleep(0)
        last = asyncio.create_task(batcher.run(watched, pictures[3]))
        await asyncio.sleep(0)
        engine.gate.set()
        for name, (given, thread, sizes) in zip(("one", "other"), await asyncio.gather(*called), strict=True):
            assert given == name
            assert thread.startswith("inference")
            # In its turn: what had come before has been computed, what came later has not.
            assert sizes == [1, 2]
        await asyncio.gather(first, *two, last)
        assert engine.sizes == [1, 2, 1]
        with pytest.raises(ZeroDivisionError):
            await batcher.call(lambda: 1 // 0)

    run(work)


def test_what_waits_too_long_is_told_so_and_never_computed(watched: Classifier, pictures: list[Picture]) -> None:
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(lanes=1, most=4, seconds=0.05)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0]))
        await until(lambda: engine.sizes == [1])
        with pytest.raises(Problem) as raised:
            await batcher.run(watched, pictures[1])
        assert (raised.value.code, raised.value.headers) == ("overloaded", {"Retry-After": "1"})
        engine.gate.set()
        # What has begun is not given up, however long it took.
        assert len(await first) == 1
        assert engine.sizes == [1]

    run(work)


def test_a_caller_that_goes_away_stops_costing(watched: Classifier, pictures: list[Picture]) -> None:
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(lanes=1, most=1, seconds=30)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0]))
        await until(lambda: engine.sizes == [1])
        gone = asyncio.create_task(batcher.run(watched, pictures[1]))
        stays = asyncio.create_task(batcher.run(watched, pictures[2]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, stays)
        assert engine.sizes == [1, 1]
        assert gone.cancelled()

    run(work)


def test_two_models_never_share_an_inference(
    watched: Classifier, classifier: Classifier, pictures: list[Picture]
) -> None:
    other = Classifier(classifier.bundle, classifier.engine)
    other.engine = Watched(classifier.engine)  # type: ignore[assignment]
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(lanes=1, most=8, seconds=30)
        engine.gate.clear()
        first = asyncio.create_task(batcher.run(watched, pictures[0]))
        await until(lambda: engine.sizes == [1])
        models = [watched, watched, other, other, watched]
        asked = [
            asyncio.create_task(batcher.run(model, picture)) for model, picture in zip(models, pictures, strict=False)
        ]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *asked)
        assert (engine.sizes, engine_of(other).sizes) == ([1, 2, 1], [2])

    run(work)


def test_lanes_compute_beside_each_other(watched: Classifier, pictures: list[Picture]) -> None:
    engine = engine_of(watched)

    async def work() -> None:
        batcher = Batcher(lanes=3, most=8, seconds=30)
        engine.gate.clear()
        asked = [asyncio.create_task(batcher.run(watched, picture)) for picture in pictures[:3]]
        await until(lambda: engine.sizes == [1, 1, 1])
        engine.gate.set()
        await asyncio.gather(*asked)

    run(work)


def test_a_request_that_gets_no_turn_is_told_to_come_back() -> None:
    async def work() -> None:
        turns = Turns(1, seconds=0.05)
        gate = threading.Event()
        busy = asyncio.create_task(turns.run(gate.wait))
        await asyncio.sleep(0.01)
        with pytest.raises(Problem) as raised:
            await turns.run(int, "1")
        response = raised.value.response()
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        gate.set()
        await busy
        # The turn that was waited for in vain has not got lost.
        assert await turns.run(int, "1") == 1

    run(work)


def test_places_are_given_back_whatever_happens() -> None:
    places = Places(3, "pictures")
    with places.hold(1) as take:
        take(2)
        with pytest.raises(Problem) as raised, places.hold(1):
            pass
        assert raised.value.code == "overloaded"
    assert places.used == 0
    with pytest.raises(ZeroDivisionError), places.hold(3):
        1 / 0  # noqa: B018
    assert places.used == 0

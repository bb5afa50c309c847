"""Decoding: small pictures in threads, large ones in processes that end when nobody waits for them."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import numpy as np
import psutil
import pytest
from PIL import Image

from protoserve.errors import ImageError
from protoserve.images.decoding import decode
from protoserve.images.fitting import FittedImage, fit
from protoserve.images.geometry import InputRule
from service.contract.problems import Problem
from service.scheduling import decoding
from service.scheduling.decoding import Decoder, hide_main_module
from service.settings import Settings
from tests import bombs

RULE = InputRule(height=64, width=64, resize="crop")


@pytest.fixture(autouse=True)
def without_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes need not import pytest's program."""
    monkeypatch.setitem(sys.modules["__main__"].__dict__, "__file__", None)
    hide_main_module()
    assert not hasattr(sys.modules["__main__"], "__file__")


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(60):
            await work()

    anyio.run(bounded)


def here(data: bytes) -> FittedImage:
    return fit(decode(data), RULE)


def refuse(data: bytes) -> FittedImage:
    raise AssertionError("not in this process")


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.is_running() and child.status() != "zombie"]


def png(side: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_a_photograph_is_small_and_a_bomb_is_not() -> None:
    decoder = Decoder(Settings())
    stream = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(stream, "JPEG")
    for data, small in (
        (bombs.portrait(400, 300), True),
        (stream.getvalue(), True),
        (bombs.run_lengths(3000, 3000), False),
        (bombs.many_scans(2000, 90), False),
        (bombs.flat_webp(3000), False),
        (bombs.large_tile(8000), False),
    ):
        assert decoder.examine(RULE, data).is_small == small


def test_what_takes_more_than_the_service_has_is_refused_at_once() -> None:
    decoder = Decoder(Settings(max_decoding=400_000_000))
    assert decoder._process_memory.capacity == 300_000_000
    for data, message in (
        (
            bombs.flat_webp(7071),
            r"takes up to 1,0[\d,]{10} bytes of memory to decode, more than the 300,000,000",
        ),
        (bombs.stated_tile(64, 20_000), "bytes of memory to decode"),
        (bombs.run_lengths(6000, 6000), "takes up to 2. seconds to decode, and 10 are allowed"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            decoder.examine(RULE, data)
        assert caught.value.code == "image_too_large"


@pytest.mark.parametrize(
    ("budget", "threads"),
    [(200, 100), (400, 100), (430, 130), (465, 150), (500, 150), (1000, 400), (2250, 1025)],
)
def test_small_pictures_have_memory_of_their_own(budget: int, threads: int) -> None:
    decoder = Decoder(Settings(max_decoding=budget * 1_000_000))
    assert decoder._thread_memory.capacity == threads * 1_000_000
    assert decoder._process_memory.capacity == (budget - threads) * 1_000_000


def test_two_photographs_of_12_megapixels_are_decoded_at_a_time_in_a_gigabyte() -> None:
    decoder = Decoder(Settings(max_decoding=Settings().decoding_budget(1 << 30)))
    photograph = decoder.examine(RULE, bombs.stated_jpeg(4032, 3024, 5_000_000))
    assert photograph.is_small
    assert 2 * photograph.cost.memory <= decoder._thread_memory.capacity


def test_a_process_gives_the_pixels_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "THREAD_SECONDS", 0.0)
    data = bombs.portrait(400, 300)

    async def work() -> None:
        decoder = Decoder(Settings())
        upload = decoder.examine(RULE, data)
        assert not upload.is_small
        first = await decoder.fit(RULE, upload, refuse)
        [process] = children()
        second = await decoder.fit(RULE, upload, refuse)
        # The process is used again.
        assert children() == [process]
        expected = here(data)
        for found in (first, second):
            assert (found.array == expected.array).all()
            assert found.geometry == expected.geometry

    run(work)
    assert not children()


def test_errors_of_a_process_are_those_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "THREAD_SECONDS", 0.0)
    data = png(200)[:-3000]
    with pytest.raises(ImageError) as expected:
        here(data)

    async def work() -> None:
        decoder = Decoder(Settings())
        with pytest.raises(ImageError) as caught:
            await decoder.fit(RULE, decoder.examine(RULE, data), refuse)
        assert (str(caught.value), caught.value.code) == (str(expected.value), expected.value.code)

    run(work)


def test_a_picture_that_takes_too_long_is_stopped_and_the_next_one_decoded() -> None:
    async def work() -> None:
        decoder = Decoder(Settings(decode_seconds=3.0))
        slow = decoding.Upload(bombs.run_lengths(8000, 8000), decoder.examine(RULE, bombs.run_lengths(1500, 1500)).cost)
        start = time.monotonic()
        with pytest.raises(Problem, match="decoding the image took more than 3 seconds") as caught:
            await decoder.fit(RULE, slow, refuse)
        assert caught.value.code == "answer_timeout"
        assert time.monotonic() - start < 10
        assert not children()
        assert (await decoder.fit(RULE, decoder.examine(RULE, bombs.flat_webp(2500)), refuse)).array.shape == (
            64,
            64,
            3,
        )

    run(work)


def test_a_caller_that_leaves_ends_the_process() -> None:
    async def work() -> None:
        decoder = Decoder(Settings())
        slow = decoder.examine(RULE, bombs.run_lengths(5000, 3000))
        async with anyio.create_task_group() as group:
            group.start_soon(decoder.fit, RULE, slow, refuse)
            while not children():
                await anyio.sleep(0.01)
            await anyio.sleep(0.6)
            group.cancel_scope.cancel()
        assert not children()
        assert decoder._process_memory.used == decoder._processes.used == 0

    run(work)


def test_a_process_that_is_killed_costs_its_own_request_alone() -> None:
    async def work() -> None:
        decoder = Decoder(Settings())
        slow = decoder.examine(RULE, bombs.run_lengths(5000, 3000))
        caught: list[Problem] = []

        async def ask() -> None:
            with pytest.raises(Problem) as raised:
                await decoder.fit(RULE, slow, refuse)
            caught.append(raised.value)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while not children():
                await anyio.sleep(0.01)
            await anyio.sleep(1)
            children()[0].kill()
        assert [problem.code for problem in caught] == ["overloaded"]
        assert (await decoder.fit(RULE, decoder.examine(RULE, bombs.flat_webp(2500)), refuse)).array.any()

    run(work)


def test_pictures_wait_for_memory_and_are_refused_when_it_does_not_come() -> None:
    async def work() -> None:
        decoder = Decoder(Settings(max_decoding=400_000_000, wait_seconds=0.3))
        large = decoder.examine(RULE, bombs.flat_webp(3500))
        async with decoder._process_memory.reserve(200_000_000):
            with pytest.raises(Problem, match=r"could not start on this request within 0.3 seconds") as caught:
                await decoder.fit(RULE, large, refuse)
        assert caught.value.code == "overloaded"
        assert (await decoder.fit(RULE, large, refuse)).array.any()

    run(work)


def test_a_thread_keeps_its_memory_until_it_ends_though_its_caller_left() -> None:
    started = anyio.Event()
    finish: list[bool] = []

    async def work() -> None:
        decoder = Decoder(Settings())
        upload = decoder.examine(RULE, bombs.portrait(400, 300))
        token = anyio.lowlevel.current_token()

        def hold(data: bytes) -> Any:
            anyio.from_thread.run_sync(started.set, token=token)
            while not finish:
                time.sleep(0.005)

        async with anyio.create_task_group() as group:
            group.start_soon(decoder.fit, RULE, upload, hold)
            await started.wait()
            group.cancel_scope.cancel()
        assert decoder._thread_memory.used == upload.cost.memory
        finish.append(True)
        while decoder._thread_memory.used:
            await anyio.sleep(0.005)

    run(work)

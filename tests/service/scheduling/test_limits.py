"""Admission limits: concurrent calls and budgets."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import anyio
import pytest

from service.contract.problems import Problem
from service.operations.request_context import RequestContext, bind_context
from service.scheduling.limits import CapacityBudget, ConcurrencyLimiter, WaitingBudget


def test_no_more_calls_than_the_limit_run_at_a_time() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    async def work() -> None:
        limiter = ConcurrencyLimiter(2, timeout=30)
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(limiter.run, call)

    anyio.run(work)
    assert most == 2


def test_a_call_that_waits_too_long_is_refused_and_leaves_the_limiter_usable() -> None:
    async def work() -> None:
        limiter = ConcurrencyLimiter(1, timeout=0.05)
        gate = threading.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.run, gate.wait)
            await anyio.sleep(0.01)
            with pytest.raises(Problem) as raised:
                await limiter.run(int, "1")
            gate.set()
        response = raised.value.response()
        assert (raised.value.code, response.status_code, response.headers["retry-after"]) == ("overloaded", 503, "1")
        assert await limiter.run(int, "1") == 1

    anyio.run(work)


def test_a_call_that_fails_frees_its_thread() -> None:
    async def work() -> None:
        limiter = ConcurrencyLimiter(1, timeout=1)
        with pytest.raises(ValueError, match="invalid literal"):
            await limiter.run(int, "x")
        assert await limiter.run(int, "1") == 1

    anyio.run(work)


def test_a_budget_is_returned_whatever_happens() -> None:
    budget = CapacityBudget(3, "images")
    with budget.reserve(1) as reserve_more:
        reserve_more(2)
        assert budget.used == 3
        with pytest.raises(Problem, match=r"at its limit of 3 images") as raised, budget.reserve(1):
            pass
        assert raised.value.code == "overloaded"
        with pytest.raises(Problem):
            reserve_more(1)
    assert budget.used == 0
    with pytest.raises(ZeroDivisionError), budget.reserve(3):
        1 / 0  # noqa: B018
    assert budget.used == 0


def fill(budget: CapacityBudget, stack: ExitStack, client: str, count: int = 1) -> int:
    """Reserve for one client, one unit a request, until it is refused; return how much it holds."""
    for held in range(1000):
        with bind_context(RequestContext("r", key=client)):
            try:
                stack.enter_context(budget.reserve(count))
            except Problem as problem:
                assert problem.code == "overloaded"
                return held * count
    raise AssertionError("never refused")


def test_one_client_cannot_take_all_of_a_budget() -> None:
    budget = CapacityBudget(128, "images")
    with ExitStack() as first:
        assert fill(budget, first, "greedy") == 96
        with ExitStack() as second:
            # Each finds three quarters of what the others leave.
            assert fill(budget, second, "next") == 24
            assert fill(budget, second, "third") == 6
    assert (budget.used, len(budget._holdings)) == (0, 0)


def test_a_single_request_may_take_all_of_a_budget() -> None:
    budget = CapacityBudget(10, "bytes of requests")
    with bind_context(RequestContext("r", key="only")), budget.reserve(6) as reserve_more:
        reserve_more(3)
        with pytest.raises(Problem, match="your other requests hold 9 of 10"), budget.reserve(1):
            pass
        reserve_more(0)
        assert budget.used == 9


def test_a_refusal_of_a_client_costs_it_nothing() -> None:
    budget = CapacityBudget(4, "images")
    with ExitStack() as stack:
        assert fill(budget, stack, "a") == 3
        assert fill(budget, stack, "a") == 0
        assert budget.used == 3
    with ExitStack() as stack:
        assert fill(budget, stack, "a") == 3


def test_a_caller_that_is_cancelled_leaves_at_once_and_its_call_keeps_its_place() -> None:
    async def work() -> None:
        limiter = ConcurrencyLimiter(1, timeout=0.05)
        gate = threading.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.run, gate.wait)
            await anyio.sleep(0.02)
            group.cancel_scope.cancel()
        assert [age > 0 for age in limiter.ages()] == [True]
        with pytest.raises(Problem):
            await limiter.run(int, "1")
        gate.set()
        limiter = ConcurrencyLimiter(1, timeout=5)
        assert await limiter.run(int, "1") == 1
        assert limiter.ages() == []

    anyio.run(work)


def test_callers_wait_for_a_budget_in_their_order() -> None:
    async def work() -> None:
        budget, order = WaitingBudget(10, timeout=30), []

        async def take(name: str, count: int) -> None:
            async with budget.reserve(count):
                order.append(name)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            for name, count in (("first", 6), ("large", 10), ("small", 1)):
                group.start_soon(take, name, count)
                await anyio.sleep(0)
            await anyio.sleep(0.001)
            # The small one would fit, but the large one came before.
            assert (order, budget.used) == (["first"], 6)
        assert (order, budget.used) == (["first", "large", "small"], 0)

    anyio.run(work)


def test_clients_take_turns_for_a_budget() -> None:
    async def work() -> None:
        budget, order = WaitingBudget(2, timeout=30), []

        async def take(client: str) -> None:
            with bind_context(RequestContext("id", address=client)):
                async with budget.reserve(1):
                    order.append(client)
                    await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            for client in "aaaaab":
                group.start_soon(take, client)
                await anyio.sleep(0)
        # Two start at once; then the other client comes before the rest of the first one's.
        assert "".join(order) == "aabaaa"

    anyio.run(work)


def test_a_caller_that_gives_up_lets_the_next_one_in() -> None:
    async def work() -> None:
        budget = WaitingBudget(10, timeout=0.05)
        async with budget.reserve(5):
            async with anyio.create_task_group() as group:
                group.start_soon(expect_refusal, budget, 6)
                await anyio.sleep(0.01)
                async with budget.reserve(5):
                    assert budget.used == 10
            assert budget.used == 5
        assert budget.used == 0

    async def expect_refusal(budget: WaitingBudget, count: int) -> None:
        with pytest.raises(Problem) as caught:
            async with budget.reserve(count):
                pass
        assert caught.value.code == "overloaded"

    anyio.run(work)


def test_a_cancelled_caller_returns_what_it_was_given() -> None:
    async def take(budget: WaitingBudget) -> None:
        async with budget.reserve(4):
            await anyio.sleep(10)

    async def work() -> None:
        for delay in (0.0, 0.001, 0.005):
            budget = WaitingBudget(10, timeout=30)
            async with anyio.create_task_group() as group:
                claim = await budget.acquire(10)
                group.start_soon(take, budget)
                await anyio.sleep(delay)
                budget.release(claim)
                # Its turn has come, and it is cancelled before it notices.
                group.cancel_scope.cancel()
            assert budget.used == 0

    anyio.run(work)

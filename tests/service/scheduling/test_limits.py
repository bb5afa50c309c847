"""Admission limits: concurrent calls and budgets."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import anyio
import pytest

from service.contract.problems import Problem
from service.operations.request_context import RequestContext, bind_context
from service.scheduling.limits import CapacityBudget, ConcurrencyLimiter


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

"""The limit on how often each client may do something."""

from __future__ import annotations

import pytest

from service.contract.problems import Problem
from service.operations.request_context import RequestContext, bind_context
from service.scheduling import rate
from service.scheduling.rate import RateLimit


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    return clock


def test_a_minute_of_events_may_come_at_once_and_then_one_by_one(clock: Clock) -> None:
    limit = RateLimit(6)
    with bind_context(RequestContext("1", key="kiosk")):
        for _ in range(6):
            limit.count("pictures")
        with pytest.raises(Problem, match=r"at most 6 pictures a minute .* try again in 10 s") as raised:
            limit.count("pictures")
        assert (raised.value.code, raised.value.headers) == ("too_many_requests", {"Retry-After": "10"})
        clock.now += 10
        limit.count("pictures")
        with pytest.raises(Problem):
            limit.count("pictures")
        clock.now += 1000
        for _ in range(6):
            limit.count("pictures")
        with pytest.raises(Problem):
            limit.count("pictures")


def test_clients_do_not_share_it(clock: Clock) -> None:
    limit = RateLimit(1)
    for key in ("kiosk", "till"):
        with bind_context(RequestContext("1", key=key)):
            limit.count("pictures")


def test_it_remembers_a_bounded_number_of_clients(clock: Clock) -> None:
    limit = RateLimit(1)
    for number in range(3000):
        with bind_context(RequestContext("1", key=f"key-{number}")):
            limit.count("pictures")
    assert len(limit._restored) == 1000

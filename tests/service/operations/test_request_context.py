"""The context of the current request."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context

import pytest

from service.operations.request_context import RequestContext, bind_context, current_context, measure_stage
from tests.service.running import TestClient
from tests.service.samples import growth, read_samples


def test_the_context_is_current_inside_its_block_only() -> None:
    context = RequestContext("r-1")
    with bind_context(context):
        assert current_context() is context
    assert current_context().id == "none"
    # Facts noted outside a request do not stay.
    current_context().images = 3
    assert current_context().images == 0


def test_tasks_and_threads_see_the_context_of_their_own_request() -> None:
    async def request(name: str) -> tuple[str, str]:
        with bind_context(RequestContext(name)):
            await asyncio.sleep(0)
            in_thread = await asyncio.to_thread(lambda: current_context().id)
            return current_context().id, in_thread

    async def work() -> list[tuple[str, str]]:
        return await asyncio.gather(*(request(name) for name in ("a", "b")))

    assert asyncio.run(work()) == [("a", "a"), ("b", "b")]


def test_stages_add_up_here_and_in_the_metrics_also_when_they_fail(client: TestClient) -> None:
    before = read_samples(client)
    with bind_context(RequestContext("r-1")) as context:
        with measure_stage("decode"):
            pass
        first = context.stages["decode"]
        with pytest.raises(ZeroDivisionError), measure_stage("decode"):
            1 / 0  # noqa: B018
        thread = threading.Thread(target=copy_context().run, args=(context.add_stage_seconds, "infer", 0.5))
        thread.start()
        thread.join()
    assert context.stages["decode"] > first > 0
    assert context.stages["infer"] == 0.5
    after = read_samples(client)
    assert growth(before, after, "protoserve_stage_seconds_count", stage="decode") == 2
    assert growth(before, after, "protoserve_stage_seconds_sum", stage="infer") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("address", "key", "client"),
    [
        ("192.0.2.7", None, "192.0.2.7"),
        ("192.0.2.7", "camera", "key camera"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", None, "2001:db8:1:2::/64"),
        ("fe80::1%eth0", None, "fe80::/64"),
        ("testclient", None, "testclient"),
        ("a:b", None, "a:b"),
        ("", None, ""),
    ],
)
def test_a_client_is_a_key_or_an_address(address: str, key: str | None, client: str) -> None:
    assert RequestContext("r", address, key).client == client

"""When the client sends a request again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from protoserve.client import Client
from protoserve.errors import ServiceError
from protoserve.feedback.store import open_store
from tests.protoserve.client.bridge import ADDRESS, Bridge
from tests.protoserve.client.conftest import SECRET


@pytest.mark.parametrize("status", [429, 503])
def test_a_request_to_a_busy_service_is_retried_after_retry_after(app: ASGIApp, photograph: Path, status: int) -> None:
    busy = iter([httpx.Response(status, headers={"retry-after": "1"}), httpx.Response(status)])
    begun = time.monotonic()
    with Client(ADDRESS, transport=Bridge(app, lambda: next(busy, None))) as client:
        assert client.predict(photograph).path
    assert time.monotonic() - begun >= 1.0
    assert next(busy, None) is None


def test_retries_end_when_the_service_stays_busy(app: ASGIApp, photograph: Path) -> None:
    document: Any = {"code": "overloaded", "detail": "no turn", "status": 503}
    tries: list[int] = []

    def busy() -> httpx.Response:
        tries.append(1)
        return httpx.Response(503, json=document)

    with (
        Client(ADDRESS, retries=1, transport=Bridge(app, busy)) as client,
        pytest.raises(ServiceError, match="no turn") as raised,
    ):
        client.predict(photograph)
    assert (raised.value.code, len(tries)) == ("overloaded", 2)


def test_feedback_that_is_sent_again_counts_once(listening: ASGIApp, tmp_path: Path, photograph: Path) -> None:
    lost = iter([False, True, False])

    class Forgetful(Bridge):
        """Loses one response after the service has answered."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            if next(lost):
                raise httpx.ReadError("connection reset")
            return response

    file = tmp_path / "feedback.jsonl"
    with Client(ADDRESS, key=SECRET, transport=Forgetful(listening)) as client:
        client.feedback(client.predict(photograph), "right")
    assert len(file.read_text().splitlines()) == 2
    assert len(open_store(str(file)).read().records) == 1

"""`AsyncClient` against the real routes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp

from protoserve.client import AsyncClient, Client
from protoserve.errors import ServiceError
from protoserve.inference.classifier import Classifier
from tests.protoserve.client.bridge import ADDRESS, Bridge
from tests.protoserve.client.conftest import SECRET
from tests.service.predictions import as_served


def test_the_asynchronous_client_returns_the_same(app: ASGIApp, classifier: Classifier, photograph: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(ADDRESS, transport=httpx.ASGITransport(app)) as client:
            assert await client.is_ready()
            assert (await client.model())["name"] == "tiny"
            assert await client.predict(photograph) == as_served(classifier.predict(photograph))
            [only] = await client.predict_batch([photograph], top_k=1)
            assert only == as_served(classifier.predict(photograph, top_k=1))
            with pytest.raises(ServiceError) as raised:
                await client.predict(b"no picture")
            assert raised.value.code == "unsupported_image"

    asyncio.run(ask())


def test_it_asks_every_route_that_the_other_client_asks(listening: ASGIApp, photograph: Path) -> None:
    async def ask() -> list[object]:
        async with AsyncClient(ADDRESS, key=SECRET, transport=httpx.ASGITransport(listening)) as client:
            prediction = await client.predict(photograph)
            record = await client.feedback(prediction, "right")
            return [
                record.model_dump(exclude={"at", "request"}),
                await client.feedback_picture(photograph),
                await client.taxonomy(),
                await client.prototypes("Animal"),
                await client.prototype(0),
                await client.prototype_image(0),
                await client.input(photograph),
            ]

    found = asyncio.run(ask())
    with Client(ADDRESS, key=SECRET, transport=Bridge(listening)) as client:
        record = client.feedback(client.predict(photograph), "right")
        assert found == [
            record.model_dump(exclude={"at", "request"}),
            client.feedback_picture(photograph),
            client.taxonomy(),
            client.prototypes("Animal"),
            client.prototype(0),
            client.prototype_image(0),
            client.input(photograph),
        ]


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)

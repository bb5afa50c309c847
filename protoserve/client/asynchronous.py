"""The client for asyncio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

import httpx
import tenacity

from protoserve.client import calls
from protoserve.client.address import TIMEOUT, http_headers, input_errors, service_address
from protoserve.client.calls import Asked, Call, Maps, Picture, View
from protoserve.client.retrying import RETRIES, RETRYABLE, BusyError, checked, last_failure, wait
from protoserve.errors import ServiceError
from protoserve.feedback.record import FeedbackRecord, Verdict
from protoserve.schema import Prediction

Answer = TypeVar("Answer")


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._proxied = transport is None
        with input_errors(address):
            self._http = httpx.AsyncClient(
                base_url=service_address(address), headers=http_headers(key), timeout=timeout, transport=transport
            )
        self._retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(retries + 1), retry=RETRYABLE, wait=wait, reraise=True
        )

    async def predict(
        self,
        image: Picture,
        *,
        top_k: int | None = None,
        alternatives: int | None = None,
        maps: Maps = "boxes",
        **asked: Unpack[Asked],
    ) -> Prediction:
        """As `Client.predict`."""
        return await self._ask(calls.predict(image, top_k, alternatives, maps, asked))

    async def predict_batch(
        self,
        images: Sequence[Picture],
        *,
        top_k: int | None = None,
        alternatives: int | None = None,
        maps: Maps = "boxes",
        **asked: Unpack[Asked],
    ) -> list[Prediction | ServiceError]:
        """As `Client.predict_batch`."""
        return await self._ask(calls.predict_batch(images, top_k, alternatives, maps, asked))

    async def feedback(
        self,
        prediction: Prediction,
        verdict: Verdict,
        *,
        node: str | None = None,
        prototypes: Sequence[int] = (),
        comment: str = "",
        by: str = "",
    ) -> FeedbackRecord:
        """As `Client.feedback`."""
        return await self._ask(calls.feedback(prediction, verdict, node, prototypes, comment, by))

    async def feedback_picture(self, image: Picture) -> str:
        """As `Client.feedback_picture`."""
        return await self._ask(calls.feedback_picture(image))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return await self._ask(calls.described("/v1/model"))

    async def taxonomy(self) -> dict[str, Any]:
        """As `Client.taxonomy`."""
        return await self._ask(calls.described("/v1/taxonomy"))

    async def prototypes(self, node: str | None = None) -> list[dict[str, Any]]:
        """As `Client.prototypes`."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page, cursor = await self._ask(calls.prototypes(node, cursor))
            found += page
            if cursor is None:
                return found

    async def prototype(self, prototype: int) -> dict[str, Any]:
        """As `Client.prototype`."""
        return await self._ask(calls.described(f"/v1/prototypes/{prototype}"))

    async def prototype_image(self, prototype: int, *, view: View = "context") -> bytes:
        """As `Client.prototype_image`."""
        return await self._ask(calls.prototype_image(prototype, view))

    async def sample(self, number: int) -> bytes:
        """As `Client.sample`."""
        return await self._ask(calls.sample(number))

    async def input(self, image: Picture) -> bytes:
        """As `Client.input`."""
        return await self._ask(calls.fitted(image))

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return (await self._http.get("/readyz")).status_code == httpx.codes.OK
        except httpx.RequestError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: Call[Answer]) -> Answer:
        async def attempt() -> httpx.Response:
            return checked(await self._http.request(call.method, call.path, **call.options))

        retrying: Callable[[Callable[[], Awaitable[httpx.Response]]], Awaitable[httpx.Response]] = self._retrying
        try:
            return call.read(await retrying(attempt))
        except (BusyError, httpx.RequestError) as error:
            raise last_failure(error, str(self._http.base_url), proxied=self._proxied) from error

"""Typed clients of the HTTP service: `Client`, and `AsyncClient` for asyncio.

They need the extra `client` (httpx and tenacity), but no model. They retry a request if the service is busy (429, 503)
or the connection fails, after `Retry-After` or with exponential backoff, whichever is longer.

>>> with Client("http://127.0.0.1:3000") as client:                # doctest: +SKIP
...     prediction = client.predict("photo.jpg", top_k=3)
...     print(prediction.path)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias

import httpx
import tenacity

from protoserve.errors import InputError, ServiceError
from protoserve.schema import Prediction

Picture: TypeAlias = bytes | str | Path
Maps: TypeAlias = Literal["none", "boxes", "heat"]

RETRIES: Final = 4
TIMEOUT: Final = 60.0
_MAX_WAIT: Final = 30.0
_BUSY: Final = frozenset({429, 503})


class _Busy(Exception):
    """A response that asks the client to retry later."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code}")
        self.response = response


# Predictions have no side effects, so a retry is always safe.
_RETRYABLE = tenacity.retry_if_exception_type((_Busy, httpx.TransportError))
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.25, max=_MAX_WAIT)


class Client:
    """A client of the service at an address, such as `http://127.0.0.1:3000`.

    `key` is the API key, if the service requires one. `retries` is the number of retries per request, 0 for none.
    `timeout` is the limit of one attempt in seconds. Use the client in `with`, or `close` it; threads may share it.
    """

    def __init__(
        self,
        address: str,
        *,
        key: str | None = None,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=address, headers=_headers(key), timeout=timeout, transport=transport)
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(retries + 1), retry=_RETRYABLE, wait=_wait, reraise=True
        )

    def predict(
        self, image: Picture, *, top_k: int | None = None, alternatives: int | None = None, maps: Maps = "boxes"
    ) -> Prediction:
        """Request the prediction for one picture, given as a file or as encoded bytes.

        Raises ServiceError if the service refuses the request or does not respond, and InputError for a file that can't
        be read.
        """
        body = _content(image)
        query = _query(top_k, alternatives, maps)
        return _prediction(self._send("POST", "/v1/predict", params=query, content=body, headers=_BINARY))

    def predict_batch(
        self,
        images: Sequence[Picture],
        *,
        top_k: int | None = None,
        alternatives: int | None = None,
        maps: Maps = "boxes",
    ) -> list[Prediction | ServiceError]:
        """Request predictions for several pictures; returns a prediction or an error for each, in order.

        Raises as `predict` does if the request fails as a whole.
        """
        files = [("image", (str(index), _content(image))) for index, image in enumerate(images)]
        query = _query(top_k, alternatives, maps)
        return _items(self._send("POST", "/v1/predict/batch", params=query, files=files))

    def model(self) -> dict[str, Any]:
        """Request the description of the model: name, version, input, limits, scores (`GET /v1/model`)."""
        return _object(self._send("GET", "/v1/model"))

    def is_ready(self) -> bool:
        """Return whether the service reports that it is ready; never retries."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        def attempt() -> httpx.Response:
            return _checked(self._http.request(method, path, **options))

        try:
            return self._retrying(attempt)
        except (_Busy, httpx.TransportError) as error:
            raise _last_failure(error, str(self._http.base_url)) from error


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
        self._http = httpx.AsyncClient(base_url=address, headers=_headers(key), timeout=timeout, transport=transport)
        self._retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(retries + 1), retry=_RETRYABLE, wait=_wait, reraise=True
        )

    async def predict(
        self, image: Picture, *, top_k: int | None = None, alternatives: int | None = None, maps: Maps = "boxes"
    ) -> Prediction:
        """As `Client.predict`."""
        body = _content(image)
        query = _query(top_k, alternatives, maps)
        return _prediction(await self._send("POST", "/v1/predict", params=query, content=body, headers=_BINARY))

    async def predict_batch(
        self,
        images: Sequence[Picture],
        *,
        top_k: int | None = None,
        alternatives: int | None = None,
        maps: Maps = "boxes",
    ) -> list[Prediction | ServiceError]:
        """As `Client.predict_batch`."""
        files = [("image", (str(index), _content(image))) for index, image in enumerate(images)]
        query = _query(top_k, alternatives, maps)
        return _items(await self._send("POST", "/v1/predict/batch", params=query, files=files))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return _object(await self._send("GET", "/v1/model"))

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        try:
            return (await self._http.get("/readyz")).status_code == httpx.codes.OK
        except httpx.TransportError:
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

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def attempt() -> httpx.Response:
            return _checked(await self._http.request(method, path, **options))

        retrying: Callable[[Callable[[], Awaitable[httpx.Response]]], Awaitable[httpx.Response]] = self._retrying
        try:
            return await retrying(attempt)
        except (_Busy, httpx.TransportError) as error:
            raise _last_failure(error, str(self._http.base_url)) from error


_BINARY: Final = {"Content-Type": "application/octet-stream"}


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _wait(state: tenacity.RetryCallState) -> float:
    """Return the seconds to wait: the longer of `Retry-After` and a random exponential backoff, at most `_MAX_WAIT`."""
    error = state.outcome.exception() if state.outcome is not None else None
    retry_after = error.response.headers.get("retry-after", "") if isinstance(error, _Busy) else ""
    backoff = _BACKOFF(state)
    return min(max(float(retry_after), backoff), _MAX_WAIT) if retry_after.isdecimal() else backoff


def _content(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{str(image)!r}: can't read the image ({error})") from error


def _query(top_k: int | None, alternatives: int | None, maps: Maps) -> dict[str, str | int]:
    parameters = {"top_k": top_k, "alternatives": alternatives, "maps": None if maps == "boxes" else maps}
    return {name: value for name, value in parameters.items() if value is not None}


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code in _BUSY:
        raise _Busy(response)
    if response.is_success:
        return response
    raise _refusal(response)


def _refusal(response: httpx.Response) -> ServiceError:
    """Make the error for a failed response; that of a proxy has no problem document."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or "code" not in document:
        return ServiceError(
            f"{response.url}: responded {response.status_code} without a problem document; is this a ProtoServe "
            "service?",
            "unknown",
            response.status_code,
        )
    return _problem(document)


def _problem(document: Mapping[str, Any]) -> ServiceError:
    return ServiceError(str(document.get("detail")), str(document["code"]), int(document.get("status", 0)))


def _last_failure(error: _Busy | httpx.TransportError, address: str) -> ServiceError:
    if isinstance(error, _Busy):
        return _refusal(error.response)
    reason = error or type(error).__name__
    return ServiceError(f"{address}: no response ({reason}); is the service running?", "unreachable", 0)


def _prediction(response: httpx.Response) -> Prediction:
    return Prediction.model_validate_json(response.content)


def _items(response: httpx.Response) -> list[Prediction | ServiceError]:
    return [
        Prediction.model_validate(item["prediction"]) if item["problem"] is None else _problem(item["problem"])
        for item in response.json()["results"]
    ]


def _object(response: httpx.Response) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    return document

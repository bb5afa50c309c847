"""Typed clients of the HTTP service: `Client`, and `AsyncClient` for asyncio.

They need the extra `client` (httpx and tenacity), but no model. They retry a request if the service is busy (429, 503)
or the connection fails, after `Retry-After` or with exponential backoff, whichever is longer.

>>> Client("http://127.0.0.1:3000").predict("photo.jpg", top_k=3).path    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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


class Asked(TypedDict, total=False):
    """What a request may ask besides the size of its answer: see `protoserve.inference.options.PredictOptions`."""

    contrast: str
    without: Sequence[int]
    precision: float
    allow: Sequence[str]
    deny: Sequence[str]
    depth: Mapping[str, int]
    prior: Mapping[str, float]
    list: str


class _Busy(Exception):
    """A response that asks the client to retry later."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code}")
        self.response = response


# Predictions have no side effects, so a retry is always safe. Of a request that cannot be sent, it is useless.
_FINAL: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_RETRYABLE = tenacity.retry_if_exception(
    lambda error: isinstance(error, _Busy | httpx.TransportError) and not isinstance(error, _FINAL)
)
# What an answer raises that is not a document of the service, for example of a proxy.
_STRANGE: Final = (ValueError, KeyError, TypeError, RecursionError)
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.25, max=_MAX_WAIT)


class Client:
    """A client of the service at an address, such as `http://127.0.0.1:3000`.

    `key` is the API key, if the service requires one. `retries` is the number of retries per request, 0 for none.
    `timeout` is the limit of one attempt in seconds. Use the client in `with`, or `close` it; threads may share it.

    Raises InputError for an address or a key that can't be sent.
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
        self._proxied = transport is None
        with _input_errors(address):
            self._http = httpx.Client(
                base_url=_address(address), headers=_headers(key), timeout=timeout, transport=transport
            )
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(retries + 1), retry=_RETRYABLE, wait=_wait, reraise=True
        )

    def predict(
        self,
        image: Picture,
        *,
        top_k: int | None = None,
        alternatives: int | None = None,
        maps: Maps = "boxes",
        **asked: Unpack[Asked],
    ) -> Prediction:
        """Request the prediction for one picture, given as a file or as encoded bytes; `asked` as in `Asked`.

        Raises ServiceError if the service refuses the request or does not respond, and InputError for a file that can't
        be read.
        """
        body = _content(image)
        query = _query(top_k, alternatives, maps, asked)
        return _prediction(self._send("POST", "/v1/predict", params=query, content=body, headers=_BINARY))

    def predict_batch(
        self,
        images: Sequence[Picture],
        *,
        top_k: int | None = None,
        alternatives: int | None = None,
        maps: Maps = "boxes",
        **asked: Unpack[Asked],
    ) -> list[Prediction | ServiceError]:
        """Request predictions for several pictures; returns a prediction or an error for each, in order.

        Raises as `predict` does if the request fails as a whole.
        """
        files = [("image", (str(index), _content(image))) for index, image in enumerate(images)]
        query = _query(top_k, alternatives, maps, asked)
        return _items(self._send("POST", "/v1/predict/batch", params=query, files=files), len(files))

    def model(self) -> dict[str, Any]:
        """Request the description of the model: name, version, input, limits, scores (`GET /v1/model`)."""
        return _object(self._send("GET", "/v1/model"))

    def is_ready(self) -> bool:
        """Return whether the service reports that it is ready; never retries."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.RequestError:
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
        except (_Busy, httpx.RequestError) as error:
            raise _last_failure(error, str(self._http.base_url), self._proxied) from error


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
        with _input_errors(address):
            self._http = httpx.AsyncClient(
                base_url=_address(address), headers=_headers(key), timeout=timeout, transport=transport
            )
        self._retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(retries + 1), retry=_RETRYABLE, wait=_wait, reraise=True
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
        body = _content(image)
        query = _query(top_k, alternatives, maps, asked)
        return _prediction(await self._send("POST", "/v1/predict", params=query, content=body, headers=_BINARY))

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
        files = [("image", (str(index), _content(image))) for index, image in enumerate(images)]
        query = _query(top_k, alternatives, maps, asked)
        return _items(await self._send("POST", "/v1/predict/batch", params=query, files=files), len(files))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return _object(await self._send("GET", "/v1/model"))

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

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def attempt() -> httpx.Response:
            return _checked(await self._http.request(method, path, **options))

        retrying: Callable[[Callable[[], Awaitable[httpx.Response]]], Awaitable[httpx.Response]] = self._retrying
        try:
            return await retrying(attempt)
        except (_Busy, httpx.RequestError) as error:
            raise _last_failure(error, str(self._http.base_url), self._proxied) from error


_BINARY: Final = {"Content-Type": "application/octet-stream"}


def _address(address: str) -> str:
    parts = urlsplit(address)
    # `port` raises ValueError above 65535.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise InputError(f"{address!r} is not the address of a service; give one such as http://127.0.0.1:3000")
    return address


def _headers(key: str | None) -> dict[str, str]:
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable() and key.strip() == key and key):
        # The message does not repeat the key, which is a secret.
        raise InputError("the API key is empty or holds characters that HTTP can't send; give it as it was made")
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def _input_errors(address: str) -> Iterator[None]:
    """Turn httpx's errors about the address or the environment's proxies into InputError."""
    try:
        yield
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise InputError(
            f"{address!r}: can't make a client of it ({error}); correct it, or the proxy settings"
        ) from None


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


def _query(top_k: int | None, alternatives: int | None, maps: Maps, asked: Asked) -> dict[str, str | int | float]:
    parameters = {
        "top_k": top_k,
        "alternatives": alternatives,
        "maps": None if maps == "boxes" else maps,
        "contrast": asked.get("contrast"),
        "without": ",".join(map(str, asked.get("without", ()))) or None,
        "precision": asked.get("precision"),
        "allow": ",".join(asked.get("allow", ())) or None,
        "deny": ",".join(asked.get("deny", ())) or None,
        "depth": _pairs(asked.get("depth", {})),
        "prior": _pairs(asked.get("prior", {})),
        "list": asked.get("list"),
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _pairs(values: Mapping[str, float]) -> str | None:
    """Write `{"Fruit": 2}` as `Fruit:2`; None for an empty mapping."""
    return ",".join(f"{node}:{value:g}" if node else f"{value:g}" for node, value in values.items()) or None


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code in _BUSY:
        raise _Busy(response)
    if response.is_success:
        return response
    raise _refusal(response)


def _refusal(response: httpx.Response) -> ServiceError:
    """Make the error for a failed response; that of a proxy has no problem document."""
    try:
        return _problem(response.json(), response.status_code)
    except _STRANGE:
        return _strange(response, "without a problem document")


def _strange(response: httpx.Response, what: str) -> ServiceError:
    hint = _proxy_of(response.url)
    return ServiceError(
        f"{response.url}: responded {response.status_code} {what}; is this a ProtoServe service?{hint}",
        "unknown",
        response.status_code,
    )


def _problem(document: Any, status: int) -> ServiceError:
    """Make the error of a problem document. Raises one of `_STRANGE` for anything else."""
    code, detail, status = document["code"], document.get("detail"), document.get("status", status)
    if not isinstance(code, str) or not isinstance(status, int):
        raise TypeError("not a problem document")
    return ServiceError(str(detail), code, status)


def _last_failure(error: _Busy | httpx.RequestError, address: str, proxied: bool) -> ServiceError:
    if isinstance(error, _Busy):
        return _refusal(error.response)
    reason = str(error) or type(error).__name__
    if not isinstance(error, httpx.TransportError):
        return ServiceError(
            f"{address}: can't read its response ({reason}); is this a ProtoServe service?", "unknown", 0
        )
    hint = _proxy_of(httpx.URL(address)) if proxied else ""
    return ServiceError(f"{address}: no response ({reason}); is the service running?{hint}", "unreachable", 0)


def _proxy_of(url: httpx.URL) -> str:
    """Name the proxy that the environment sets for a URL, without the password that its address may hold."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.host):
        return ""
    shown = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    return (
        f" Requests to it go through the proxy {shown.hostname}:{shown.port or 80} ({url.scheme.upper()}_PROXY); to "
        f"ask it directly, set NO_PROXY={url.host}"
    )


def _prediction(response: httpx.Response) -> Prediction:
    try:
        return Prediction.model_validate_json(response.content)
    except _STRANGE as error:
        raise _strange(response, "without a prediction") from error


def _items(response: httpx.Response, count: int) -> list[Prediction | ServiceError]:
    try:
        results = [
            Prediction.model_validate(item["prediction"])
            if item["problem"] is None
            else _problem(item["problem"], response.status_code)
            for item in response.json()["results"]
        ]
    except _STRANGE as error:
        raise _strange(response, "without predictions") from error
    if len(results) != count:
        raise _strange(response, f"with {len(results)} predictions for {count} pictures")
    return results


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except _STRANGE as error:
        raise _strange(response, "without a document") from error
    if not isinstance(document, dict):
        raise _strange(response, "without a document")
    return document

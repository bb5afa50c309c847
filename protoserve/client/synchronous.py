"""The client for programs without asyncio."""

from __future__ import annotations

from collections.abc import Sequence
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
        with input_errors(address):
            self._http = httpx.Client(
                base_url=service_address(address), headers=http_headers(key), timeout=timeout, transport=transport
            )
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(retries + 1), retry=RETRYABLE, wait=wait, reraise=True
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
        return self._ask(calls.predict(image, top_k, alternatives, maps, asked))

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
        return self._ask(calls.predict_batch(images, top_k, alternatives, maps, asked))

    def feedback(
        self,
        prediction: Prediction,
        verdict: Verdict,
        *,
        node: str | None = None,
        prototypes: Sequence[int] = (),
        comment: str = "",
        by: str = "",
    ) -> FeedbackRecord:
        """Say whether a prediction of the service is `right`, `wrong` (with the right `node` if it is known), or has a
        `wrong reason` (with the `prototypes` that should not have counted).

        Returns the record that the service keeps. Raises ServiceError if the service refuses it or takes no feedback,
        and InputError for feedback that contradicts itself.
        """
        return self._ask(calls.feedback(prediction, verdict, node, prototypes, comment, by))

    def feedback_picture(self, image: Picture) -> str:
        """Send a picture to keep with the feedback on it; returns its SHA-256. Raises as `predict` does."""
        return self._ask(calls.feedback_picture(image))

    def model(self) -> dict[str, Any]:
        """Request the description of the model: name, version, input, limits, scores, named lists (`GET /v1/model`)."""
        return self._ask(calls.described("/v1/model"))

    def taxonomy(self) -> dict[str, Any]:
        """Request the class tree, every node with its number of prototypes (`GET /v1/taxonomy`)."""
        return self._ask(calls.described("/v1/taxonomy"))

    def prototypes(self, node: str | None = None) -> list[dict[str, Any]]:
        """Request the descriptions of all prototypes, or of a node's (`GET /v1/prototypes`, page by page)."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page, cursor = self._ask(calls.prototypes(node, cursor))
            found += page
            if cursor is None:
                return found

    def prototype(self, prototype: int) -> dict[str, Any]:
        """Request the description of one prototype (`GET /v1/prototypes/ID`)."""
        return self._ask(calls.described(f"/v1/prototypes/{prototype}"))

    def prototype_image(self, prototype: int, *, view: View = "context") -> bytes:
        """Request the training picture of a prototype, encoded: in its `context`, or the `patch` alone."""
        return self._ask(calls.prototype_image(prototype, view))

    def sample(self, number: int) -> bytes:
        """Request one of the model's sample pictures, a PNG; `model()["samples"]` is their number."""
        return self._ask(calls.sample(number))

    def input(self, image: Picture) -> bytes:
        """Request a picture at model size, as the network gets it, a PNG. Raises as `predict` does."""
        return self._ask(calls.fitted(image))

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

    def _ask(self, call: Call[Answer]) -> Answer:
        def attempt() -> httpx.Response:
            return checked(self._http.request(call.method, call.path, **call.options))

        try:
            return call.read(self._retrying(attempt))
        except (BusyError, httpx.RequestError) as error:
            raise last_failure(error, str(self._http.base_url), proxied=self._proxied) from error

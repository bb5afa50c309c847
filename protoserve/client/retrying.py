"""When a request is sent again: where the service is busy, or the connection fails."""

from __future__ import annotations

from typing import Final

import httpx
import tenacity

from protoserve.client.answers import no_response, refusal
from protoserve.errors import ServiceError

RETRIES: Final = 4
_MAX_WAIT: Final = 30.0
_BUSY: Final = frozenset({429, 503})
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.25, max=_MAX_WAIT)


class BusyError(Exception):
    """A response that asks the client to retry later."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code}")
        self.response = response


# Every request may be repeated: predictions change nothing, and feedback of one request's id counts once. Of a request
# that can't be sent, a repetition is useless.
_FINAL: Final = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
RETRYABLE = tenacity.retry_if_exception(
    lambda error: isinstance(error, BusyError | httpx.TransportError) and not isinstance(error, _FINAL)
)


def wait(state: tenacity.RetryCallState) -> float:
    """Return the seconds to wait: the longer of `Retry-After` and a random exponential backoff, at most `_MAX_WAIT`."""
    error = state.outcome.exception() if state.outcome is not None else None
    retry_after = error.response.headers.get("retry-after", "") if isinstance(error, BusyError) else ""
    backoff = _BACKOFF(state)
    return min(max(float(retry_after), backoff), _MAX_WAIT) if retry_after.isdecimal() else backoff


def checked(response: httpx.Response) -> httpx.Response:
    """Return a successful response. Raises BusyError if the service is busy, ServiceError for a refusal."""
    if response.status_code in _BUSY:
        raise BusyError(response)
    if response.is_success:
        return response
    raise refusal(response)


def last_failure(error: BusyError | httpx.RequestError, address: str, *, proxied: bool) -> ServiceError:
    """Make the error for a request that failed in every attempt; for `proxied` see `no_response`."""
    if isinstance(error, BusyError):
        return refusal(error.response)
    return no_response(error, address, proxied=proxied)

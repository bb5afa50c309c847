"""A limit on how often each client may do something."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from service.contract.problems import Problem
from service.operations.request_context import current_context

# The most clients that are remembered; the one that was longest silent is forgotten first.
_CLIENTS: Final = 1000
_MINUTE: Final = 60.0


class RateLimit:
    """At most `per_minute` events a minute for each client (`RequestContext.client`), in one process.

    A client may use a minute's events at once; they come back one by one.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        # Client → when the events that it has used will all have come back.
        self._restored: OrderedDict[str, float] = OrderedDict()

    def count(self, unit: str) -> None:
        """Count one event of the current request's client; raises Problem `too_many_requests` beyond the limit."""
        now, client, step = time.monotonic(), current_context().client, _MINUTE / self.per_minute
        restored = max(now, self._restored.get(client, now)) + step
        if restored > now + _MINUTE + step / 2:
            wait = max(1, round(restored - now - _MINUTE))
            raise Problem(
                "too_many_requests",
                f"at most {self.per_minute:,} {unit} a minute are accepted from one client; try again in {wait} s",
                {"Retry-After": str(wait)},
            )
        self._restored[client] = restored
        self._restored.move_to_end(client)
        if len(self._restored) > _CLIENTS:
            self._restored.popitem(last=False)

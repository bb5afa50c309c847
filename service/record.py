"""What one request's log line, its metrics and its trace say, gathered while it is answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter

from service import metrics
from service.metrics import Stage


@dataclass
class RequestRecord:
    """A request: its id, its key's name, and what became of it. Never anything of a picture but its size."""

    id: str
    key: str | None = None
    code: str | None = None
    """The code of the problem that it was answered with."""
    model: str | None = None
    """The version of the model that answered."""
    images: int = 0
    bytes: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds in every stage, added up over the request's pictures."""

    def took(self, stage: Stage, seconds: float) -> None:
        """Count the time of one stage, here and in the metrics."""
        metrics.stage_seconds(stage).observe(seconds)
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


_CURRENT: ContextVar[RequestRecord] = ContextVar("request_record")


def current_record() -> RequestRecord:
    """The record of the request that is being answered; outside of one, a record that nobody reads."""
    found = _CURRENT.get(None)
    return RequestRecord("none") if found is None else found


@contextmanager
def recording(record: RequestRecord) -> Iterator[RequestRecord]:
    """Make `record` the current one, also in the threads and tasks that are started meanwhile."""
    token = _CURRENT.set(record)
    try:
        yield record
    finally:
        _CURRENT.reset(token)


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Count the time of one stage of the current request, also when it fails."""
    start = perf_counter()
    try:
        yield
    finally:
        current_record().took(name, perf_counter() - start)

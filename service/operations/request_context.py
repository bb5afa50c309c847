"""The context of the current request: the facts for its log line, metrics and trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import IPv6Network
from time import perf_counter

from service.operations import metrics
from service.operations.metrics import Stage


@dataclass
class RequestContext:
    """Facts about one request. Holds nothing of an image except its size."""

    id: str
    address: str = ""
    """Network address of the client, or of the last proxy before the service."""
    key: str | None = None
    """Name of the API key that the request presented."""
    code: str | None = None
    """Code of the problem document that answered the request."""
    model: str | None = None
    """Version of the model that answered."""
    images: int = 0
    """Number of predicted images."""
    bytes: int = 0
    """Size of the request body."""
    open_inference: bool = False
    """Whether it is a request of the Open Inference Protocol, whose clients expect errors in a form of its own."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds in each stage, summed over the request's images."""

    @property
    def client(self) -> str:
        """Who shares the service's capacity as one: an API key, an IPv4 address, or the IPv6 addresses of one site."""
        if self.key is not None:
            return f"key {self.key}"
        if ":" in self.address:
            with suppress(ValueError):
                return str(IPv6Network((self.address.partition("%")[0], 64), strict=False))
        return self.address

    def add_stage_seconds(self, stage: Stage, seconds: float) -> None:
        """Add the duration of one stage, here and in the metrics."""
        metrics.stage_seconds(stage).observe(seconds)
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds


_CONTEXT: ContextVar[RequestContext] = ContextVar("request_context")


def current_context() -> RequestContext:
    """Return the context of the current request. Outside a request, returns a new one with the id "none"."""
    context = _CONTEXT.get(None)
    return RequestContext("none") if context is None else context


@contextmanager
def bind_context(context: RequestContext) -> Iterator[RequestContext]:
    """Make `context` current, also in threads and tasks that start inside the `with` block."""
    token = _CONTEXT.set(context)
    try:
        yield context
    finally:
        _CONTEXT.reset(token)


@contextmanager
def measure_stage(stage: Stage) -> Iterator[None]:
    """Add the duration of the `with` block to the current request, also when the block fails."""
    start = perf_counter()
    try:
        yield
    finally:
        current_context().add_stage_seconds(stage, perf_counter() - start)

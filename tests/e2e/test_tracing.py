"""Traces, from the running service to a collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.serving import serving, wait_until

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="the extra 'tracing' is not installed"
)
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra 'tracing' is not installed")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector's address and the spans that it received."""
    spans: list[Any] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = trace_service.ExportTraceServiceRequest.FromString(body)
            spans.extend(
                span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
            )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    server.server_close()


def values(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_is_a_span_of_its_senders_trace(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, collector: tuple[str, list[Any]]
) -> None:
    endpoint, spans = collector
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "traced-1"}
    settings = {"PROTOSERVE_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with serving(tiny_bundle, tmp_path, **settings) as server:
        predict = f"{server.address}/v1/predict"
        document = httpx.post(predict, content=photograph.read_bytes(), headers=headers, timeout=30).json()
        assert httpx.post(predict, content=b"no picture", headers=headers).status_code == 415
        requests: list[dict[str, Any]] = []

        def arrived() -> bool:
            requests[:] = [found for span in spans if "protoserve.request_id" in (found := values(span))]
            return len(requests) == 2

        wait_until(arrived, 30, server.log)
    good, bad = sorted(requests, key=lambda one: "protoserve.problem" in one)
    assert good["protoserve.request_id"] == bad["protoserve.request_id"] == "traced-1"
    assert good["protoserve.model.version"] == document["model"]["version"]
    assert all(good[f"protoserve.stage.{name}_seconds"] > 0 for name in ("decode", "infer", "evidence"))
    assert bad["protoserve.problem"] == "unsupported_image"
    mine = [span for span in spans if "protoserve.request_id" in values(span)]
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in mine} == {(TRACE, PARENT)}
    # Probes leave no trace.
    assert not [span for span in spans if "readyz" in span.name]

"""Additions to every response: request id, security headers, metrics, a log line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from service.operations.logs import JsonLineFormatter, TextFormatter
from tests.service.problems import check_problem
from tests.service.running import TestClient
from tests.service.samples import growth, read_samples


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "protoserve")


def access_log(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "protoserve.access"]


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/healthz", "/v1/model", "/v1/prototypes/0/image", "/nope", "/metrics"]
)
def test_every_response_has_an_id_and_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path, headers={"x-request-id": "abc-123"}).headers
    assert headers["x-request-id"] == "abc-123"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'quote"', "täg".encode()])
def test_an_id_that_is_unsafe_in_logs_is_replaced(client: TestClient, given: str | bytes) -> None:
    headers: dict[str, str | bytes] = {"x-request-id": given}
    request_id = client.get("/livez", headers=headers).headers["x-request-id"]  # type: ignore[arg-type]
    assert len(request_id) == 32
    assert request_id.isalnum()


def test_metrics_are_labelled_by_route_and_never_by_path(client: TestClient, photograph: Path) -> None:
    client.get("/made-up/0")
    before = read_samples(client)
    client.post("/v1/predict", content=photograph.read_bytes())
    client.post("/v1/predict", content=b"no picture")
    for index in range(5):
        client.get(f"/made-up/{index}")
        client.get(f"/v1/prototypes/{index}")
    client.request("BREW", "/v1/model")
    after = read_samples(client)

    def requests(**labels: str) -> float:
        return growth(before, after, "protoserve_requests_total", **labels)

    assert requests(method="POST", route="/v1/predict", status="200") == 1
    assert requests(method="POST", route="/v1/predict", status="415") == 1
    assert requests(method="GET", route="none", status="404") == 5
    assert requests(method="GET", route="/v1/prototypes/{id}", status="200") == 5
    assert requests(method="other", status="405") == 1
    assert growth(before, after, "protoserve_request_seconds_count", route="/v1/predict") == 2
    assert "made-up" not in client.get("/metrics").text


def test_the_log_line_of_a_prediction_has_these_fields_and_no_others(
    client: TestClient, caplog: pytest.LogCaptureFixture, photograph: Path
) -> None:
    data = photograph.read_bytes()
    client.post("/v1/predict?top_k=1", content=data, headers={"x-request-id": "r-1"})
    [record] = access_log(caplog)
    line = json.loads(JsonLineFormatter().format(record))
    assert set(line) == {
        *("time", "level", "logger", "message", "request_id", "method", "route", "status", "seconds", "client"),
        *("model", "bytes", "images", "stages"),
    }
    assert line["request_id"] == "r-1"
    assert (line["route"], line["method"], line["status"], line["level"]) == ("/v1/predict", "POST", 200, "info")
    assert (line["bytes"], line["images"]) == (len(data), 1)
    assert line["model"].startswith("sha256:")
    assert set(line["stages"]) == {"read", "decode", "queue", "infer", "evidence", "encode"}
    assert all(0 <= seconds <= line["seconds"] for seconds in line["stages"].values())
    assert "request_id=r-1" in TextFormatter().format(record)


def test_the_log_line_of_a_refusal_has_its_code(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    check_problem(client.post("/v1/predict", content=b"no picture"), "unsupported_image")
    [refusal] = access_log(caplog)
    assert (vars(refusal)["code"], refusal.levelno) == ("unsupported_image", logging.INFO)


def test_successful_probes_are_logged_at_debug_level(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/metrics"):
        client.get(path)
    assert [record.levelno for record in access_log(caplog)] == [logging.DEBUG] * 4


def test_an_unknown_path_is_logged_in_part(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    client.get("/" + "long" * 100)
    [record] = access_log(caplog)
    assert vars(record)["path"] == ("/" + "long" * 100)[:200]

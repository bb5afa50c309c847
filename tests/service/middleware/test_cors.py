"""Pages of other origins."""

from __future__ import annotations

from pathlib import Path

from service.api_keys import create_key
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient

SHOP = "https://shop.example"


def test_a_preflight_is_accepted_from_allowed_origins_only(run_app: RunApp) -> None:
    _, key = create_key("page")
    client = run_app(cors_origins=(SHOP,), api_keys=(key,))
    headers = {"origin": SHOP, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    accepted = client.options("/v1/predict", headers=headers)
    assert (accepted.status_code, accepted.content) == (204, b"")
    assert accepted.headers["access-control-allow-origin"] == SHOP
    refused = client.options("/v1/predict", headers=headers | {"origin": "https://evil.example"})
    assert "https://evil.example" in check_problem(refused, "origin_not_allowed")["detail"]
    assert "access-control-allow-origin" not in refused.headers


def test_the_page_that_sent_a_request_can_read_its_refusal(run_app: RunApp, photograph: Path) -> None:
    _, key = create_key("page")
    client = run_app(cors_origins=(SHOP,), api_keys=(key,))
    response = client.post("/v1/predict", content=photograph.read_bytes(), headers={"origin": SHOP})
    check_problem(response, "invalid_key")
    assert response.headers["access-control-allow-origin"] == SHOP


def test_without_origins_no_other_page_can_read_a_response(client: TestClient) -> None:
    response = client.get("/v1/model", headers={"origin": SHOP})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers

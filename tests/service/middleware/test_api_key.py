"""Which requests need an API key."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.api_keys import create_key
from tests.service.problems import check_problem
from tests.service.running import RunApp


def test_requests_with_a_valid_key_are_answered_and_others_refused(run_app: RunApp, photograph: Path) -> None:
    (first, first_key), (second, second_key) = create_key("first"), create_key("second")
    client = run_app(api_keys=(first_key, second_key))
    data = photograph.read_bytes()
    valid: list[dict[str, str]] = [
        {"authorization": f"Bearer {first}"},
        {"authorization": f"bearer {second}"},
        {"x-api-key": second},
    ]
    for headers in valid:
        assert client.post("/v1/predict", content=data, headers=headers).status_code == 200
    invalid: list[dict[str, str]] = [
        {},
        {"x-api-key": first + "x"},
        {"x-api-key": first_key.hash},
        {"authorization": f"Basic {first}"},
    ]
    for headers in invalid:
        response = client.post("/v1/predict", content=data, headers=headers)
        check_problem(response, "invalid_key")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert first not in response.text


@pytest.mark.parametrize(
    ("path", "status"),
    [("/livez", 200), ("/readyz", 200), ("/openapi.json", 200), ("/", 200), ("/metrics", 401), ("/x", 401)],
)
def test_probes_page_and_openapi_document_need_no_key(run_app: RunApp, path: str, status: int) -> None:
    _, key = create_key("a")
    assert run_app(api_keys=(key,)).get(path).status_code == status

"""The application as a whole: unknown routes, methods, failures."""

from __future__ import annotations

import pytest

from service.model.holder import LoadedModel, ModelHolder
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/", "/v1/model/", "/v1//predict", "/docs", "/%00"])
def test_an_unknown_path_is_a_problem(client: TestClient, path: str) -> None:
    check_problem(client.get(path, follow_redirects=False), "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/predict", "OPTIONS, POST"),
        ("PUT", "/v1/predict/batch", "OPTIONS, POST"),
        ("POST", "/v1/model", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/prototypes/1", "GET, HEAD, OPTIONS"),
        ("POST", "/readyz", "GET, HEAD, OPTIONS"),
        ("BREW", "/", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_refused_with_the_right_ones(
    client: TestClient, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert allowed in check_problem(response, "method_not_allowed")["detail"]
    assert response.headers["allow"] == allowed
    options = client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")


def test_head_answers_like_get_without_a_body(client: TestClient) -> None:
    get, head = client.get("/v1/model"), client.head("/v1/model")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))


def test_a_failure_reveals_nothing_about_its_cause(run_app: RunApp, holder: ModelHolder) -> None:
    models = iter([holder.current()])

    def fail_after_the_start() -> LoadedModel:
        if (model := next(models, None)) is None:
            raise RuntimeError("secret")
        return model

    response = run_app(fail_after_the_start).get("/readyz")
    check_problem(response, "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"]

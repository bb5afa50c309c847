"""Probes, metrics and the OpenAPI document."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.contract.openapi import openapi_document
from service.model.holder import LoadedModel, ModelHolder
from service.routes import operations
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient


@pytest.mark.parametrize(("path", "text"), [("/livez", "alive\n"), ("/healthz", "alive\n"), ("/readyz", "ready\n")])
def test_probes_answer_and_are_not_cached(client: TestClient, path: str, text: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.text) == (200, text)
    assert response.headers["cache-control"] == "no-store"


def test_readiness_depends_on_the_model_and_liveness_does_not(run_app: RunApp, holder: ModelHolder) -> None:
    models = iter([holder.current()])

    def lose_the_model() -> LoadedModel:
        if (model := next(models, None)) is None:
            raise RuntimeError("no model")
        return model

    client = run_app(lose_the_model)
    assert client.get("/livez").status_code == 200
    check_problem(client.get("/readyz"), "internal_error")


def test_metrics_are_in_prometheus_text_format(client: TestClient) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"protoserve_requests", "protoserve_in_flight", "protoserve_model_info"} <= names


def test_the_openapi_document_states_the_limits_of_this_service(run_app: RunApp, holder: ModelHolder) -> None:
    served = run_app(max_images=7).get("/openapi.json").json()
    assert served == openapi_document(top_k=holder.current().classifier.table.top_k, images=7, feedback=False)


def test_the_openapi_document_is_built_once(run_app: RunApp, monkeypatch: pytest.MonkeyPatch) -> None:
    client = run_app(max_images=9)
    first = client.get("/openapi.json")
    monkeypatch.setattr(operations, "openapi_document", lambda *_, **__: pytest.fail("built again"))
    assert client.get("/openapi.json").content == first.content


def test_metrics_on_a_port_of_their_own_are_no_route(run_app: RunApp) -> None:
    client = run_app(metrics_port=9100)
    check_problem(client.get("/metrics"), "not_found")
    assert "/metrics" not in client.get("/openapi.json").json()["paths"]

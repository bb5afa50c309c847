"""The Open Inference Protocol in the OpenAPI document: its requests and answers fit their schemas."""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import Any

import pytest

from service.contract.openapi import openapi_document
from tests.service.running import TestClient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jsonschema


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return openapi_document()


def check(instance: Any, name: str, whole: dict[str, Any]) -> None:
    jsonschema.validate(instance, {"$ref": f"#/components/schemas/{name}", "components": whole["components"]})


def test_every_answer_fits_the_schema_that_its_route_states(
    client: TestClient, whole: dict[str, Any], photograph: Path
) -> None:
    routes = [path for path in whole["paths"] if path.startswith("/v2") and not path.endswith("/infer")]
    assert len(routes) == 7
    version = client.get("/v2/models/tiny").json()["versions"][0]
    for path in routes:
        answer = client.get(path.replace("{name}", "tiny").replace("{version}", version))
        stated = whole["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        check(answer.json(), stated["$ref"].rpartition("/")[2], whole)
    data = [base64.b64encode(photograph.read_bytes()).decode()]
    asked = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}]}
    check(asked, "InferDocument", whole)
    answer = client.post("/v2/models/tiny/infer", json=asked)
    check(answer.json(), "InferResponse", whole)
    check(client.post("/v2/models/other/infer", json=asked).json(), "InferenceProblemDocument", whole)


def test_a_request_needs_only_its_inputs(whole: dict[str, Any]) -> None:
    schema = whole["components"]["schemas"]["InferDocument"]
    assert schema["required"] == ["inputs"] and schema["additionalProperties"] is False
    assert "id" not in whole["components"]["schemas"]["InferResponse"]["required"]
    assert whole["paths"]["/v2/health/live"]["get"]["security"] == []

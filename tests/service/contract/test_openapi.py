"""The OpenAPI document matches the routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from service.contract.openapi import openapi_document
from service.contract.problems import STATUS_OF
from tests.service.running import TestClient


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    served: dict[str, Any] = client.get("/openapi.json").json()
    assert served == openapi_document(top_k=9, images=3, feedback=False)
    return served


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from references(item)


def test_it_lists_exactly_the_routes_and_methods_of_the_application(
    client: TestClient, document: dict[str, Any]
) -> None:
    assert isinstance(client.app, Starlette)
    routes = {
        (route.path, method.lower())
        for route in client.app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {(path, method) for path, item in document["paths"].items() for method in item} == routes


@pytest.mark.parametrize("feedback", [False, True])
def test_every_reference_resolves_and_every_schema_is_used(feedback: bool) -> None:
    document = openapi_document(feedback=feedback)
    schemas = document["components"]["schemas"]
    used = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert used == set(schemas)


def test_parameters_are_those_that_the_route_takes(client: TestClient, document: dict[str, Any]) -> None:
    operation = document["paths"]["/v1/predict"]["post"]
    parameters = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
    assert parameters == {
        "top_k": {"type": "integer", "minimum": 0, "maximum": 9},
        "maps": {"type": "string", "enum": ["none", "boxes", "heat"], "default": "boxes"},
        "alternatives": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 3},
        "contrast": {"type": "string"},
        "without": {"type": "string"},
        "precision": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 1},
        "allow": {"type": "string"},
        "deny": {"type": "string"},
        "depth": {"type": "string"},
        "prior": {"type": "string"},
        "list": {"type": "string"},
    }
    refusal = client.post("/v1/predict?nothing=1").json()["detail"]
    assert all(name in refusal for name in parameters)


def test_every_code_stands_under_its_status() -> None:
    document = openapi_document()
    stated = set()
    for item in document["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if "application/problem+json" in response.get("content", {}):
                    codes = response["description"].split(" or ")
                    stated.update(codes)
                    assert {STATUS_OF[code] for code in codes} == {int(status)}
    # No operation can state these: they answer paths, methods and preflight requests that it does not list.
    assert stated == set(STATUS_OF) - {"not_found", "method_not_allowed", "origin_not_allowed"}


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v1/model", "ModelDocument"),
        ("/v1/taxonomy", "TaxonomyDocument"),
        ("/v1/prototypes", "PrototypePage"),
        ("/v1/prototypes/{id}", "PrototypeDocument"),
    ],
)
def test_answers_have_every_property_that_their_schema_requires(
    client: TestClient, document: dict[str, Any], path: str, schema: str
) -> None:
    stated = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert stated == {"$ref": f"#/components/schemas/{schema}"}
    answer = client.get(path.replace("{id}", "0")).json()
    definition = document["components"]["schemas"][schema]
    assert set(answer) == set(definition["properties"]) == set(definition["required"])


def test_a_prediction_has_every_property_of_its_schema(
    client: TestClient, document: dict[str, Any], photograph: Path
) -> None:
    answer = client.post("/v1/predict", content=photograph.read_bytes()).json()
    schemas = document["components"]["schemas"]
    assert set(answer) == set(schemas["Prediction"]["properties"])
    assert set(answer["levels"][0]) == set(schemas["Level"]["properties"])
    # Responses never omit a property, so clients can rely on all of them.
    assert set(schemas["Level"]["required"]) == set(schemas["Level"]["properties"])

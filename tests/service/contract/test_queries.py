"""Query parameters: the refused ones and the codes of their problems."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.requests import Request

from protoserve.inference.classifier import Classifier
from service.contract.queries import PredictQuery, parse_query
from tests.service.predictions import as_served
from tests.service.problems import check_problem
from tests.service.running import TestClient


def test_parameters_are_parsed_and_defaults_filled_in() -> None:
    request = Request({"type": "http", "query_string": b"top_k=2&maps=heat"})
    assert parse_query(request, PredictQuery) == PredictQuery(top_k=2, maps="heat", alternatives=3)


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ("topk=3", "unknown_parameter", "did you mean 'top_k'?"),
        ("top_k=3&x=1", "unknown_parameter", "'x'"),
        ("top_k=-1", "invalid_parameter", "top_k"),
        ("top_k=many", "invalid_parameter", "'many'"),
        ("top_k=99", "invalid_parameter", "99"),
        ("top_k=", "invalid_parameter", "top_k"),
        ("top_k=1&top_k=2", "invalid_parameter", "twice"),
        ("maps=all", "invalid_parameter", "'heat'"),
        ("maps=none&top_k=2", "invalid_parameter", "maps=none"),
        ("alternatives=-1", "invalid_parameter", "alternatives"),
        ("alternatives=1e9", "invalid_parameter", "alternatives"),
        ("&".join(f"a{index}=1" for index in range(99)), "invalid_parameter", "32"),
        ("%ff=%fe", "unknown_parameter", "top_k"),
    ],
)
def test_an_invalid_query_is_refused_before_the_body_is_parsed(
    client: TestClient, query: str, code: str, said: str
) -> None:
    for path in ("/v1/predict", "/v1/predict/batch"):
        response = client.post(f"{path}?{query}", content=b"not an image")
        assert said in check_problem(response, code)["detail"]


@pytest.mark.parametrize("path", ["/v1/model", "/v1/taxonomy", "/v1/prototypes/0"])
def test_routes_without_parameters_refuse_any(client: TestClient, path: str) -> None:
    assert "takes none" in check_problem(client.get(f"{path}?verbose=1"), "unknown_parameter")["detail"]


@pytest.mark.parametrize("cursor", ["-1", "x", "", "9" * 10, "1 OR 1=1"])
def test_an_invalid_cursor_is_refused(client: TestClient, cursor: str) -> None:
    check_problem(client.get("/v1/prototypes", params={"cursor": cursor}), "invalid_parameter")


def test_a_restriction_gets_the_prediction_of_the_python_interface(
    client: TestClient, classifier: Classifier, photograph: Path
) -> None:
    query = {"allow": "Animal, Scuba", "deny": "Animal/Ape/Gibbon", "depth": "Animal/Ape:2", "prior": "Scuba:2"}
    response = client.post("/v1/predict", content=photograph.read_bytes(), params=query)
    expected = classifier.predict(
        photograph,
        allow=["Animal", "Scuba"],
        deny=["Animal/Ape/Gibbon"],
        depth={"Animal/Ape": 2},
        prior={"Scuba": 2.0},
    )
    assert response.text == as_served(expected).model_dump_json()
    assert expected.restriction is not None and expected.restriction.excluded > 0


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"allow": "Animal/Line"}, "'Animal/Lion'"),
        ({"allow": "Animal", "deny": "Animal"}, "both allowed and denied"),
        ({"deny": "Animal,Tool,Scuba"}, "leave no class"),
        ({"depth": "Animal:7"}, "depth=Animal:7: give a level from 1"),
        ({"prior": "Scuba"}, "prior=Scuba: write NODE:WEIGHT"),
        ({"precision": "0.95"}, "promises none"),
        ({"precision": "2"}, "precision='2'"),
        ({"list": "zoo"}, "has no list 'zoo'"),
    ],
)
def test_a_restriction_that_can_not_be_met_is_refused_before_the_picture(
    client: TestClient, query: dict[str, str], detail: str
) -> None:
    response = client.post("/v1/predict", content=b"not a picture", params=query)
    assert response.status_code in {400, 422}
    assert detail in response.json()["detail"]

"""Query parameters: the refused ones and the codes of their problems."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from protoserve.inference.classifier import Classifier
from protoserve.schema import Prediction
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


def _path_of(prediction: Prediction) -> set[str]:
    return {level.node for level in prediction.levels}


def test_contrast_and_without_are_those_of_the_python_interface(
    client: TestClient, classifier: Classifier, photograph: Path
) -> None:
    name = next(name for name in classifier.table.names if name not in _path_of(classifier.predict(photograph)))
    query: dict[str, Any] = {"contrast": name, "without": "0,3"}
    body = photograph.read_bytes()
    found = Prediction.model_validate_json(client.post("/v1/predict", content=body, params=query).content)
    expected = classifier.predict(photograph, contrast=name, without=(0, 3))
    assert found.without == [0, 3] and found.contrast is not None and expected.contrast is not None
    assert found.contrast.node == name
    assert found.contrast.logit_difference == pytest.approx(expected.contrast.logit_difference, abs=1e-4)
    assert [piece.prototype for piece in found.contrast.evidence] == [
        piece.prototype for piece in expected.contrast.evidence
    ]
    assert found.contrast.evidence[0].source.href is not None


def test_options_of_one_request_change_no_other(client: TestClient, photograph: Path) -> None:
    data = photograph.read_bytes()
    alone = client.post("/v1/predict", content=data).json()
    queries: list[dict[str, Any]] = [{}, {"without": "0,1,2"}, {"contrast": "Tool"}, {"top_k": 1}] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda query: client.post("/v1/predict", content=data, params=query).json(), queries))
    assert all(answer == alone for answer, query in zip(answers, queries, strict=True) if not query)
    assert all(answer["without"] == [0, 1, 2] for answer in answers[1::4])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("contrast=Tol", "did you mean 'Tool'?"),
        ("without=99999", "there is no prototype 99999"),
        ("without=1,x", "'x' is not the number of a prototype"),
    ],
)
def test_an_option_that_the_model_does_not_have_is_refused(client: TestClient, query: str, said: str) -> None:
    for path in ("/v1/predict", "/v1/predict/batch"):
        response = client.post(f"{path}?{query}", content=b"not an image")
        assert said in check_problem(response, "invalid_parameter")["detail"]

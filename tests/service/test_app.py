"""The routes of `service.app`: answers, limits, headers, counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from protoserve.inference.classifier import Classifier
from protoserve.schema import Prediction
from service import catalogue
from service.app import create_app
from service.current import Current
from service.settings import Settings

if TYPE_CHECKING:
    from starlette.testclient import TestClient


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    document: dict[str, Any] = response.json()
    assert set(document) == {"type", "title", "status", "detail", "code"}
    assert (document["status"], document["code"]) == (status, code)
    return document


# ---- predictions


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/anything", "application/octet-stream", None])
def test_a_raw_body_gets_the_python_interface_s_document(
    client: TestClient, classifier: Classifier, photograph: Path, media_type: str | None
) -> None:
    headers = {"content-type": media_type} if media_type else {}
    response = client.post("/v1/predict", content=photograph.read_bytes(), headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.text == classifier.predict(photograph).model_dump_json()


def test_a_form_gets_the_same_document_as_a_raw_body(client: TestClient, photograph: Path) -> None:
    raw = client.post("/v1/predict", content=photograph.read_bytes())
    form = client.post("/v1/predict", files={"image": ("a.jpg", photograph.read_bytes(), "image/jpeg")})
    assert form.status_code == 200
    assert form.content == raw.content


def test_the_query_chooses_how_much_is_told(client: TestClient, classifier: Classifier, photograph: Path) -> None:
    query = {"top_k": "2", "alternatives": "1", "maps": "heat"}
    response = client.post("/v1/predict", content=photograph.read_bytes(), params=query)
    expected = classifier.predict(photograph, top_k=2, alternatives=1, maps=True)
    assert response.text == expected.model_dump_json()
    assert any(level.evidence for level in expected.levels)
    assert all(proof.map for level in expected.levels for proof in level.evidence)


def test_maps_none_leaves_the_evidence_out(client: TestClient, photograph: Path) -> None:
    response = client.post("/v1/predict?maps=none", content=photograph.read_bytes())
    prediction = Prediction.model_validate_json(response.content)
    assert prediction.path
    assert [level.evidence for level in prediction.levels] == [[]] * len(prediction.levels)


def test_many_requests_at_a_time_are_answered_alike(client: TestClient, photograph: Path) -> None:
    data = photograph.read_bytes()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/predict", content=data).content, range(24)))
    assert len(set(answers)) == 1


def test_a_batch_gets_a_prediction_or_a_problem_for_each_picture_in_order(
    client: TestClient, classifier: Classifier, photograph: Path
) -> None:
    good = photograph.read_bytes()
    files = [("image", ("1", good)), ("image", ("2", b"no picture")), ("image", ("3", good[:400]))]
    response = client.post("/v1/predict/batch?top_k=1", files=files)
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert first == {
        "prediction": json.loads(classifier.predict(photograph, top_k=1).model_dump_json()),
        "problem": None,
    }
    assert (second["prediction"], second["problem"]["code"]) == (None, "unsupported_image")
    assert (third["prediction"], third["problem"]["code"]) == (None, "broken_image")


# ---- the model


def test_the_model_tells_what_it_takes(client: TestClient, classifier: Classifier) -> None:
    document = client.get("/v1/model").json()
    manifest = classifier.bundle.manifest
    assert document["version"] == manifest.version
    assert (document["leaves"], document["depth"], document["device"]) == (5, 3, "cpu")
    assert document["input"] == manifest.input.model_dump()
    assert document["limits"]["request_bytes"] == 200_000


def test_the_taxonomy_lists_every_node_below_its_parent(client: TestClient) -> None:
    document = client.get("/v1/taxonomy").json()
    nodes = {node["node"]: node for node in document["nodes"]}
    assert {name for name, node in nodes.items() if node["leaf"]} == {
        "Animal/Ape/Gibbon",
        "Animal/Ape/Orangutan",
        "Animal/Lion",
        "Tool/Blade/Knife",
        "Scuba",
    }
    assert nodes["Animal/Ape/Gibbon"] == {
        "node": "Animal/Ape/Gibbon",
        "label": "Gibbon",
        "level": 3,
        "parent": "Animal/Ape",
        "leaf": True,
        "prototypes": 3,
    }
    assert nodes["Scuba"]["parent"] is None
    # An only child competes with nobody, so it has no prototypes.
    assert nodes["Tool/Blade"]["prototypes"] == 0


def test_the_pages_of_prototypes_hold_each_once(
    client: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PAGE", 4)
    ids, cursor = [], ""
    while cursor is not None:
        page = client.get("/v1/prototypes", params={"cursor": cursor} if cursor else {}).json()
        assert 0 < len(page["prototypes"]) <= 4
        ids += [prototype["id"] for prototype in page["prototypes"]]
        cursor = page["cursor"]
    assert ids == list(range(len(classifier.bundle.manifest.prototypes)))


def test_the_prototypes_of_one_node(client: TestClient, classifier: Classifier) -> None:
    page = client.get("/v1/prototypes", params={"node": "Animal/Lion"}).json()
    records = classifier.bundle.manifest.prototypes
    assert [prototype["id"] for prototype in page["prototypes"]] == [
        record.id for record in records if record.child == "Animal/Lion"
    ]
    assert page["cursor"] is None
    hint = problem(client.get("/v1/prototypes", params={"node": "Animal/Lio"}), 404, "unknown_node")
    assert "did you mean 'Animal/Lion'?" in hint["detail"]


def test_every_source_that_evidence_names_can_be_fetched(
    client: TestClient, classifier: Classifier, photograph: Path
) -> None:
    prediction = client.post("/v1/predict", content=photograph.read_bytes()).json()
    [proof, *_] = [proof for level in prediction["levels"] for proof in level["evidence"]]
    picture = client.get(proof["source"]["href"])
    assert picture.headers["content-type"] == "image/webp"
    assert picture.content == classifier.bundle.picture(proof["prototype"]).read_bytes()
    assert client.get(f"/v1/prototypes/{proof['prototype']}").json()["source"] == proof["source"]


def test_a_picture_that_the_client_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/v1/prototypes/0/image")
    tag = first.headers["etag"]
    again = client.get("/v1/prototypes/0/image", headers={"if-none-match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/v1/prototypes/1/image", headers={"if-none-match": tag}).status_code == 200


@pytest.mark.parametrize("prototype", ["21", "-1", "007", "1.0", "x", "９", "9" * 5000, "..%2f..%2fmanifest.json"])
@pytest.mark.parametrize("suffix", ["", "/image"])
def test_an_unknown_prototype_is_404(client: TestClient, prototype: str, suffix: str) -> None:
    response = client.get(f"/v1/prototypes/{prototype}{suffix}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


# ---- the service itself


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/", "/v1/model/", "/v1//predict", "/docs", "/%00"])
def test_an_unknown_path_is_a_problem(client: TestClient, path: str) -> None:
    problem(client.get(path, follow_redirects=False), 404, "not_found")


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
def test_a_wrong_method_is_told_the_right_ones(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed
    options = client.options(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")


def test_head_answers_like_get_without_a_body(client: TestClient) -> None:
    get, head = client.get("/v1/model"), client.head("/v1/model")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 200


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "://" not in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_failure_of_the_service_tells_nothing_of_its_inside(
    client: TestClient, current: Callable[[], Current], photograph: Path
) -> None:
    models = iter([current()])

    def broken() -> Current:
        if (found := next(models, None)) is None:
            raise RuntimeError("secret")
        return found

    app = create_app(Settings(), broken)
    client = type(client)(app, raise_server_exceptions=False)
    response = client.post("/v1/predict", content=photograph.read_bytes())
    assert "secret" not in problem(response, 500, "internal_error")["detail"]
    assert response.headers["x-request-id"]


def counts(client: TestClient) -> dict[tuple[str, ...], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()) if value != "le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_metrics_count_by_route_and_never_by_path(client: TestClient, photograph: Path) -> None:
    client.get("/made-up/0")
    before = counts(client)
    prediction = client.post("/v1/predict", content=photograph.read_bytes()).json()
    client.post("/v1/predict", content=b"no picture")
    for number in range(5):
        client.get(f"/made-up/{number}")
        client.get(f"/v1/prototypes/{number}")
    after = counts(client)
    grown = {key: value - before.get(key, 0.0) for key, value in after.items()}
    assert grown["protoserve_requests_total", "POST", "/v1/predict", "200"] == 1
    assert grown["protoserve_requests_total", "POST", "/v1/predict", "415"] == 1
    assert grown["protoserve_requests_total", "GET", "none", "404"] == 5
    assert grown["protoserve_requests_total", "GET", "/v1/prototypes/{id}", "200"] == 5
    for level in prediction["levels"][:2]:
        assert grown["protoserve_predictions_total", str(level["level"]), level["node"]] == 1
    assert not any(key[:2] == ("protoserve_predictions_total", "3") for key in after)
    assert grown["protoserve_stage_seconds_count", "decode"] == 2
    assert grown["protoserve_stage_seconds_count", "infer"] == 1
    assert not any("made-up" in part for key in after for part in key)
    # Other tests' models may have been loaded into this process, too.
    models = [key for key, value in after.items() if key[0] == "protoserve_model_info" and value == 1]
    assert [key for key in models if prediction["model"]["version"] in key]

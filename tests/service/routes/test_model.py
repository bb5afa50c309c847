"""Routes that describe the model, its taxonomy and its prototypes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from protoserve.inference.classifier import Classifier
from service.model.holder import ModelHolder
from service.routes import model as model_routes
from service.settings import Settings
from tests.service.bundles import rename_bundle
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient


def test_the_model_document_states_size_input_and_limits(client: TestClient, classifier: Classifier) -> None:
    document = client.get("/v1/model").json()
    bundle = classifier.bundle
    assert document["version"] == bundle.version
    assert (document["leaves"], document["depth"], document["device"]) == (5, 3, "cpu")
    assert document["input"] == bundle.input.model_dump()
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
    # An only child has no siblings to be told from, so it has no prototypes.
    assert nodes["Tool/Blade"]["prototypes"] == 0


def test_the_pages_of_prototypes_list_each_once(
    client: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_routes, "PAGE_SIZE", 4)
    ids, cursor = [], ""
    while cursor is not None:
        page = client.get("/v1/prototypes", params={"cursor": cursor} if cursor else {}).json()
        assert 0 < len(page["prototypes"]) <= 4
        ids += [prototype["id"] for prototype in page["prototypes"]]
        cursor = page["cursor"]
    assert ids == list(range(len(classifier.bundle.prototypes)))


def test_the_prototypes_of_one_node(client: TestClient, classifier: Classifier) -> None:
    page = client.get("/v1/prototypes", params={"node": "Animal/Lion"}).json()
    records = classifier.bundle.prototypes
    assert [prototype["id"] for prototype in page["prototypes"]] == [
        record.id for record in records if record.child == "Animal/Lion"
    ]
    assert page["cursor"] is None
    hint = check_problem(client.get("/v1/prototypes", params={"node": "Animal/Lio"}), "unknown_node")
    assert "did you mean 'Animal/Lion'?" in hint["detail"]


def test_the_image_of_every_evidence_can_be_fetched(
    client: TestClient, classifier: Classifier, photograph: Path
) -> None:
    prediction = client.post("/v1/predict", content=photograph.read_bytes()).json()
    evidence = [item for level in prediction["levels"] for item in level["evidence"]]
    assert evidence
    for item in evidence:
        image = client.get(item["source"]["href"])
        assert image.headers["content-type"] == "image/webp"
        assert image.content == classifier.bundle.picture(item["prototype"]).read_bytes()
        assert client.get(f"/v1/prototypes/{item['prototype']}").json()["source"] == item["source"]


def test_an_image_that_the_client_has_cached_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/v1/prototypes/0/image")
    tag = first.headers["etag"]
    again = client.get("/v1/prototypes/0/image", headers={"if-none-match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/v1/prototypes/1/image", headers={"if-none-match": tag}).status_code == 200


@pytest.mark.parametrize("prototype", ["21", "-1", "007", "1.0", "x", "９", "9" * 5000, "..%2f..%2fmanifest.json"])
@pytest.mark.parametrize("suffix", ["", "/image"])
def test_an_unknown_prototype_is_404(client: TestClient, prototype: str, suffix: str) -> None:
    response = client.get(f"/v1/prototypes/{prototype}{suffix}")
    # A slash in the id makes it a path of no route.
    check_problem(response, "not_found" if "%2f" in prototype else "unknown_prototype")


def test_a_missing_prototype_image_is_reported_as_not_ready(run_app: RunApp, tiny_bundle: Path, tmp_path: Path) -> None:
    removed = rename_bundle(tiny_bundle, tmp_path / "removed")
    holder = ModelHolder(lambda: removed, Settings(device="cpu", threads=1))
    client = run_app(holder.current)
    assert client.get("/v1/prototypes/0/image").status_code == 200
    shutil.rmtree(removed)
    response = client.get("/v1/prototypes/0/image")
    check_problem(response, "not_ready")
    assert response.headers["retry-after"] == "1"

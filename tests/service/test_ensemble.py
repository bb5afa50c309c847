"""An ensemble behind the routes, and in the model store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protoserve.bundle.ensemble import read_model, write_ensemble
from protoserve.bundle.folder import read_bundle
from protoserve.inference.classifier import Classifier
from protoserve.schema import Prediction
from service.model.holder import ModelHolder
from service.model.store import publish_bundle
from service.settings import Settings
from tests.service.running import TestClient, running_app


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, twin_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ensembles") / "both"
    write_ensemble([read_bundle(tiny_bundle), read_bundle(twin_bundle)], directory, name="Both of them")
    return directory


@pytest.fixture(scope="module")
def joint_holder(folder: Path) -> ModelHolder:
    return ModelHolder(lambda: folder, Settings(device="cpu"))


@pytest.fixture(scope="module")
def joint(joint_holder: ModelHolder) -> Classifier:
    return joint_holder.current().classifier


@pytest.fixture(scope="module")
def joint_client(joint_holder: ModelHolder) -> Iterator[TestClient]:
    with running_app(joint_holder.current) as client:
        yield client


def test_a_prediction_names_the_member_of_every_piece_of_evidence(
    joint_client: TestClient, joint: Classifier, photograph: Path
) -> None:
    query = {"top_k": str(joint.table.top_k), "maps": "heat"}
    response = joint_client.post("/v1/predict", content=photograph.read_bytes(), params=query)
    assert response.status_code == 200, response.text
    prediction = Prediction.model_validate_json(response.text)
    assert [member.name for member in prediction.model.members or []] == ["tiny", "twin"]
    for level in prediction.levels:
        assert level.known is None
        for evidence in level.evidence:
            assert evidence.source is not None and evidence.source.href is not None
            served = joint_client.get(evidence.source.href.removesuffix("/image")).json()
            assert (served["id"], served["member"]) == (evidence.prototype, evidence.member)
            assert served["source"]["image"] == evidence.source.image
            picture = joint_client.get(evidence.source.href)
            assert picture.content == joint.bundle.picture(evidence.prototype).read_bytes()


def test_prototypes_of_all_members_are_listed_once_each(
    joint_client: TestClient, tiny_bundle: Path, twin_bundle: Path
) -> None:
    listed = joint_client.get("/v1/prototypes").json()["prototypes"]
    members = [read_bundle(directory) for directory in (tiny_bundle, twin_bundle)]
    counts = [len(member.manifest.prototypes) for member in members]
    assert [entry["id"] for entry in listed] == list(range(sum(counts)))
    assert [entry["member"] for entry in listed] == [0] * counts[0] + [1] * counts[1]
    second = joint_client.get(f"/v1/prototypes/{counts[0]}/image")
    assert second.content == members[1].picture(0).read_bytes()
    assert joint_client.get(f"/v1/prototypes/{sum(counts)}").status_code == 404


def test_the_model_document_lists_its_members(joint_client: TestClient, joint: Classifier) -> None:
    document = joint_client.get("/v1/model").json()
    assert (document["name"], document["version"]) == ("Both of them", joint.bundle.version)
    assert [(member["name"], member["rows"], member["columns"]) for member in document["members"]] == [
        ("tiny", 8, 12),
        ("twin", 4, 6),
    ]
    assert [member["first_prototype"] for member in document["members"]] == [0, document["members"][0]["prototypes"]]
    assert document["prototypes"] == sum(member["prototypes"] for member in document["members"])


def test_a_single_bundle_has_no_members(client: TestClient, photograph: Path) -> None:
    assert client.get("/v1/model").json()["members"] is None
    assert client.get("/v1/prototypes/0").json()["member"] is None
    document = client.post("/v1/predict", content=photograph.read_bytes()).json()
    assert document["model"]["members"] is None
    assert all(evidence["member"] is None for level in document["levels"] for evidence in level["evidence"])


def test_an_ensemble_is_published_whole(folder: Path, tmp_path: Path) -> None:
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    (tmp_path / "models").mkdir()
    BentoMLContainer.model_store.set(ModelStore(tmp_path / "models"))
    try:
        published = publish_bundle(folder)
        assert published.created and published.tag.startswith("both-of-them:")
        assert read_model(published.directory).version == read_model(folder).version
        assert not publish_bundle(folder).created
    finally:
        BentoMLContainer.model_store.reset()

"""Routes that describe the model, its taxonomy and its prototypes."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from protoserve.bundle.ensemble import Ensemble
from protoserve.bundle.folder import read_bundle, rewrite_manifest
from protoserve.device import ROUTED
from protoserve.images.patch_view import patch_view
from protoserve.inference.classifier import Classifier
from protoserve.schema import Prediction
from service.model.holder import ModelHolder
from service.routes import model as model_routes
from service.settings import Settings
from tests.service.bundles import rename_bundle, with_samples
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient
from tests.service.samples import growth, read_samples
from tests.truth_cards import truth_card


def test_the_model_document_states_size_input_and_limits(client: TestClient, classifier: Classifier) -> None:
    document = client.get("/v1/model").json()
    bundle = classifier.bundle
    assert document["version"] == bundle.version
    assert (document["leaves"], document["depth"], document["device"]) == (5, 3, "cpu")
    assert document["input"] == bundle.input.model_dump()
    assert document["limits"]["request_bytes"] == 200_000


def test_the_model_document_of_an_ensemble_lists_its_members(ensemble_client: TestClient, ensemble: Classifier) -> None:
    document = ensemble_client.get("/v1/model").json()
    assert (document["name"], document["version"]) == ("Both of them", ensemble.bundle.version)
    assert [(member["name"], member["rows"], member["columns"]) for member in document["members"]] == [
        ("tiny", 8, 12),
        ("twin", 4, 6),
    ]
    assert [member["first_prototype"] for member in document["members"]] == [0, document["members"][0]["prototypes"]]
    assert document["prototypes"] == sum(member["prototypes"] for member in document["members"])


def test_the_model_document_has_the_truth_card(
    client: TestClient, ensemble_client: TestClient, run_app: RunApp, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert client.get("/v1/model").json()["truth"] is None
    document = ensemble_client.get("/v1/model").json()
    assert document["truth"] is None and [member["truth"] for member in document["members"]] == [None, None]
    shutil.copytree(tiny_bundle, tmp_path / "audited")
    rewrite_manifest(read_bundle(tmp_path / "audited"), truth=truth_card())
    audited = run_app(ModelHolder(lambda: tmp_path / "audited", Settings(device="cpu", threads=1)).current)
    assert audited.get("/v1/model").json()["truth"] == truth_card().model_dump(mode="json")


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


def test_prototypes_of_all_members_are_listed_once_each(
    ensemble_client: TestClient, tiny_bundle: Path, twin_bundle: Path
) -> None:
    listed = ensemble_client.get("/v1/prototypes").json()["prototypes"]
    members = [read_bundle(directory) for directory in (tiny_bundle, twin_bundle)]
    counts = [len(member.manifest.prototypes) for member in members]
    assert [entry["id"] for entry in listed] == list(range(sum(counts)))
    assert [entry["member"] for entry in listed] == [0] * counts[0] + [1] * counts[1]
    second = ensemble_client.get(f"/v1/prototypes/{counts[0]}/image")
    assert second.content == members[1].picture(0).read_bytes()
    assert ensemble_client.get(f"/v1/prototypes/{sum(counts)}").status_code == 404


def test_a_single_bundle_has_no_members(client: TestClient) -> None:
    assert client.get("/v1/model").json()["members"] is None
    assert client.get("/v1/prototypes/0").json()["member"] is None


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


def test_the_patch_of_a_prototype_is_a_square_of_its_image(client: TestClient, classifier: Classifier) -> None:
    image = client.get("/v1/prototypes/4/image?view=patch")
    assert image.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(image.content)) as patch, Image.open(classifier.bundle.picture(4)) as whole:
        assert patch.width == patch.height <= min(whole.size)
    whole_tag = client.get("/v1/prototypes/4/image").headers["etag"]
    tag = image.headers["etag"]
    assert tag != whole_tag
    assert client.get("/v1/prototypes/4/image?view=patch", headers={"if-none-match": tag}).status_code == 304
    assert client.get("/v1/prototypes/4/image?view=patch", headers={"if-none-match": whole_tag}).status_code == 200
    check_problem(client.get("/v1/prototypes/4/image?view=whole"), "invalid_parameter")


def test_the_patch_of_an_ensembles_prototype_lies_on_its_members_cells(
    ensemble_client: TestClient, ensemble: Classifier
) -> None:
    bundle = ensemble.bundle
    assert isinstance(bundle, Ensemble)
    for member, first in zip(bundle.members, bundle.first_prototypes, strict=True):
        row, column = member.manifest.prototypes[1].source_cell
        cells = member.manifest.graph.cells
        expected = patch_view(member.picture(1).read_bytes(), bundle.input, cells, row * cells.columns + column)
        assert ensemble_client.get(f"/v1/prototypes/{first + 1}/image?view=patch").content == expected


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


@pytest.mark.parametrize("change", ["picture", "bundle"])
def test_an_image_of_another_bundle_is_not_served_under_this_version(
    run_app: RunApp, tiny_bundle: Path, twin_bundle: Path, tmp_path: Path, change: str
) -> None:
    """As after `export --overwrite` in the folder of a running service."""
    served = rename_bundle(tiny_bundle, tmp_path / "served")
    holder = ModelHolder(lambda: served, Settings(device="cpu", threads=1))
    client = run_app(holder.current)
    first = client.get("/v1/prototypes/0/image")
    if change == "picture":
        holder.current().classifier.bundle.picture(0).write_bytes(
            twin_bundle.joinpath("prototypes/0000.webp").read_bytes()
        )
    else:
        shutil.rmtree(served)
        shutil.copytree(twin_bundle, served)
    response = client.get("/v1/prototypes/0/image")
    assert "has changed since the model was loaded" in check_problem(response, "not_ready")["detail"]
    # What a client has cached under this version stays right.
    cached = client.get("/v1/prototypes/0/image", headers={"if-none-match": first.headers["etag"]})
    assert cached.status_code == 304
    if change == "bundle":
        # Predictions come from memory, and the next check takes the new bundle.
        assert client.get("/v1/model").json()["version"] == holder.current().version
        assert holder.reload()
        assert client.get("/v1/prototypes/0/image").status_code == 200


def test_sample_pictures_are_served_as_they_were_verified(
    run_app: RunApp, client: TestClient, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert client.get("/v1/model").json()["samples"] == 0
    assert "the model has none" in check_problem(client.get("/v1/samples/0"), "unknown_sample")["detail"]
    pictures = [b"\x89PNG first", b"\x89PNG second"]
    served = with_samples(tiny_bundle, tmp_path / "served", pictures)
    sampled = run_app(ModelHolder(lambda: served, Settings(device="cpu", threads=1)).current)
    assert sampled.get("/v1/model").json()["samples"] == 2
    first, second = (sampled.get(f"/v1/samples/{number}") for number in range(2))
    assert (first.content, second.content) == tuple(pictures)
    assert first.headers["content-type"] == "image/png"
    assert sampled.get("/v1/samples/0", headers={"if-none-match": first.headers["etag"]}).status_code == 304
    assert sampled.get("/v1/samples/1", headers={"if-none-match": first.headers["etag"]}).status_code == 200
    assert "ids are 0 to 1" in check_problem(sampled.get("/v1/samples/2"), "unknown_sample")["detail"]
    (served / "samples/0.png").write_bytes(b"another")
    check_problem(sampled.get("/v1/samples/0"), "not_ready")


def test_a_routed_graph_gives_the_answers_of_the_full_one_and_is_counted(
    run_app: RunApp, routed_bundle: Path, photograph: Path
) -> None:
    data = photograph.read_bytes()
    holders = {
        routed: ModelHolder(lambda: routed_bundle, Settings(device="cpu", threads=1, max_batch=4, routed=routed))
        for routed in ROUTED
    }
    clients = {routed: run_app(holder.current) for routed, holder in holders.items()}
    graphs = {routed: client.get("/v1/model").json()["graph"] for routed, client in clients.items()}
    assert graphs == {"auto": "routed", "off": "full"}
    before = read_samples(clients["auto"])
    queries = ("alternatives=0", "alternatives=0&top_k=2&maps=heat", "contrast=N", "without=1,2", "deny=A/B")
    with ThreadPoolExecutor(len(queries)) as threads:
        ask = lambda query: clients["auto"].post(f"/v1/predict?{query}", content=data)  # noqa: E731
        answers = list(threads.map(ask, queries))
    counted = read_samples(clients["auto"])
    for query, answer in zip(queries, answers, strict=True):
        expected = clients["off"].post(f"/v1/predict?{query}", content=data)
        found, wanted = (Prediction.model_validate_json(part.content) for part in (answer, expected))
        assert (found.id, found.path, found.known_through_level) == (wanted.id, wanted.path, wanted.known_through_level)
        for one, other in zip(found.levels, wanted.levels, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-4)
            assert [piece.prototype for piece in one.evidence] == [piece.prototype for piece in other.evidence]
    assert growth(before, counted, "protoserve_graph_images_total") == len(queries)
    assert growth(before, counted, "protoserve_graph_images_total", route="asked") == 3
    # The full graph alone is not counted.
    assert growth(counted, read_samples(clients["off"]), "protoserve_graph_images_total") == 0
